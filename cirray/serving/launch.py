"""`cirray serve`: the application of `serve run`, checked before anything starts and drained before it stops."""

import http.client
import logging
import multiprocessing
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import yaml

from cirray.core.artifacts import localize, read_manifest
from cirray.core.config import validate
from cirray.core.environ import installed, limit_threads, private_cluster, ray_address, set_default, variable
from cirray.core.errors import CirrayError, ConfigError, ServingError
from cirray.core.interrupts import Told, noted, own_handlers
from cirray.core.log import get_logger
from cirray.index.latest import chosen
from cirray.index.shards import Shard
from cirray.index.store import KIND, check_files, read_searchable
from cirray.index.uses import is_name, use_of
from cirray.serving.config import FAST_PATH, HAPROXY, HAPROXY_PORTS, OWN_CLUSTER, ServeArgs, ServeRun, check_open
from cirray.serving.keys import read_keys
from cirray.serving.names import each

_LOG = get_logger(__name__)
_NAME = "cirray"
_LOOK_S = 0.1
QUIET = {"enable_access_log": False, "log_level": "WARNING"}
"""Ray's warnings and errors alone. A line a request would cost its proxy more than a search costs the model."""


@dataclass(frozen=True)
class ServicePlan:
    """Settings of a start: of the application, Ray's HTTP entrance, the deployment and Ray's log."""

    args: ServeArgs
    http: Mapping[str, Any]
    deployment: Mapping[str, Any]
    logging: Mapping[str, Any] = field(default_factory=lambda: dict(QUIET))
    searchers: Mapping[str, Any] = field(default_factory=dict)
    """Settings of searchers by name."""


def run_serve(run: ServeRun, wait: bool = True) -> None:
    """Start the service, wait until interrupted, finish open requests, and stop.

    Args:
        run: what to serve, and where.
        wait: False returns as soon as the service answers.

    Raises:
        ArtifactError: the checkpoint or the index is missing or damaged.
        IndexMismatchError: they do not belong together.
        ConfigError: the port is taken, the settings or keys file cannot be used, or the network would need no key.
        ServingError: the service cannot be started.
    """
    plan = plan_of(run)
    private = ray_address() in ("", "local")
    if run.fast and not private:
        raise ConfigError(
            "The fast path is chosen before Ray starts: set the variables of serve_configs/fastpath.env on every node, "
            "and leave out fast=true; or unset RAY_ADDRESS to start a cluster of this machine."
        )
    host, port = str(plan.http["host"]), int(plan.http["port"])
    check_entrance(plan, private, run.fast)
    check_service(plan.args)
    if private:
        private_cluster(quiet=False)
        set_default("RAY_AUTH_MODE", "token")  # said before Ray is imported, or Ray warns that it is so
        for name, value in {**OWN_CLUSTER, **(fast_path() if run.fast else {})}.items():
            set_default(name, value)
    with noted() as told:
        start(plan, told)
        if told and not answers(host, port):
            leave()
            told.stop()
        _LOG.info("http://%s:%d answers; Ctrl-C stops it", host, port)
        if wait:
            told.wait()
            _LOG.info("stopping; requests that are being answered are finished")
            stop()
            _LOG.info("stopped")


def fast_path() -> dict[str, str]:
    """Variables of the fast path, as `serve_configs/fastpath.env` sets them."""
    program = installed("cirray-haproxy")
    return {**FAST_PATH, HAPROXY: program} if program else FAST_PATH


def plan_of(run: ServeRun) -> ServicePlan:
    """The fields of a run; with a Serve config file (`serve_configs/retriever.yaml`) the given ones, over the file's.

    Raises:
        ConfigError: the file cannot be read or holds no application of this package.
    """
    said = {name: getattr(run, name) for name in (run.model_fields_set if run.file else type(run).model_fields)}
    if not run.file:
        if not is_name(run.index):
            said["checkpoint"], said["index"] = chosen(run)
    own = {name: said[name] for name in ServeArgs.model_fields if name in said}
    own |= {name: _absolute(own[name]) for name in ("keys", "access_log") if own.get(name)}
    address: dict[str, Any] = {name: said[name] for name in ("host", "port") if name in said}
    replicas = {"num_replicas": said["replicas"]} if "replicas" in said else {}
    if not run.file:
        return ServicePlan(ServeArgs(**own), address, replicas)
    try:
        tree = yaml.safe_load(Path(run.file).expanduser().read_text(encoding="utf-8"))
        application = tree["applications"][0]
        deployments = {item["name"]: dict(item) for item in application.get("deployments") or ()}
        deployment = deployments.pop("Retriever", {})
        http = {"host": "0.0.0.0", "port": 8000} | (tree.get("http_options") or {}) | address
        args = validate(ServeArgs, (application.get("args") or {}) | own)
    except OSError as error:
        raise ConfigError(f"The settings file {run.file!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError):
        raise ConfigError(
            f"{run.file!r} is no Serve config file with an application; serve_configs/retriever.yaml is an example."
        ) from None
    for name in ("name", *(("autoscaling_config",) if replicas else ())):
        deployment.pop(name, None)
    logs = QUIET | (tree.get("logging_config") or {})
    return ServicePlan(args, http, deployment | replicas, logs, deployments)


def check_entrance(plan: ServicePlan, private: bool, fast: bool) -> None:
    """Refuse an open network without keys, a file of keys that cannot be read, and ports in use.

    Raises:
        ConfigError: naming what it is.
    """
    host, port = str(plan.http["host"]), int(plan.http["port"])
    check_open(plan.args, host)
    if plan.args.keys:
        read_keys(Path(plan.args.keys))
    if private:
        check_port(host, port, "Choose another port.")
        for name, number in HAPROXY_PORTS.items() if fast else ():
            check_port("", int(variable(name, number)), f"Set {name} to another port; the fast path needs it.")


def _absolute(place: str) -> str:
    """A file as processes in other folders find it."""
    return str(Path(place).expanduser().absolute())


def check_service(args: ServeArgs) -> None:
    """Load the artifacts of every gallery and answer one query, in a process of its own that frees the memory.

    Raises:
        CirrayError: what is wrong, in one sentence.
    """
    for own in each(args).values():
        use = use_of(own.index, own.checkpoint)
        read_manifest(use.checkpoint, "checkpoint")  # the commonest mistakes, found without loading the models
        read_searchable(use.index)
    context = multiprocessing.get_context("spawn")
    answer, channel = context.Pipe(duplex=False)
    child = context.Process(target=report_problem, args=(args, channel), daemon=True)
    child.start()
    channel.close()
    try:
        problem = answer.recv()
    except EOFError:
        problem = ServingError("The check of the service was killed, probably for lack of memory.")
    finally:
        child.kill()
        child.join()
    if problem is not None:
        raise problem


def report_problem(args: ServeArgs, channel: Connection) -> None:
    """Runs in the process of its own, which Ctrl-C does not reach; the one that started it ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel.send(problem_of(args))


def problem_of(args: ServeArgs) -> CirrayError | None:
    """The error that keeps these artifacts from being served on that device, or None."""
    limit_threads()
    from cirray.search_engine import SearchEngine

    try:
        for own in each(args).values():
            use = use_of(own.index, own.checkpoint)
            shard, manifest = Shard(0, args.shards), read_searchable(use.index)
            if args.verify and manifest.kind == KIND:
                check_files(localize(use.index), manifest, use.index)
            SearchEngine.open(use.checkpoint, use.index, args.device, False, None, 0, args.rerank, shard).probe()
    except CirrayError as error:
        return error
    except Exception as error:  # noqa: BLE001 - e.g. a device that this machine lacks; said in one line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return ServingError(f"The retriever does not work on device {args.device!r}: {reason}")
    return None


def start(plan: ServicePlan, told: Told) -> None:
    """Start Ray, its HTTP entrance and the application; returns when it answers, or at a signal.

    Each call of Ray's is short, so that a signal is seen between two of them.

    Raises:
        ServingError: when the replicas do not come up; Ray's log has the details.
    """
    import ray
    from ray import serve

    from cirray.serving.app import application_of
    from cirray.serving.entrances import NAMESPACE

    application, logs = application_of(plan.args, plan.searchers, **plan.deployment), dict(plan.logging)
    logging.getLogger("ray.serve").setLevel(logs.get("log_level", "INFO"))
    try:
        with own_handlers():
            ray.init(namespace=NAMESPACE, logging_level=logging.WARNING)
        if not told:
            serve.start(http_options=dict(plan.http), logging_config=logs)
        if not told:
            target = serve.RunTarget(application, _NAME, "/", logs)
            serve.run_many([target], wait_for_applications_running=False)
            wait_until_running(told)
    except RuntimeError as error:
        leave()
        raise ServingError(f"The service did not start: {str(error).strip().splitlines()[-1]}") from None


def wait_until_running(told: Told) -> None:
    """Return when the application runs, or at a signal.

    Raises:
        RuntimeError: when its replicas did not come up.
    """
    from ray import serve

    from cirray.serving.entrances import are_routed

    while not told.wait(_LOOK_S):
        state = serve.status().applications.get(_NAME)
        if state is None or state.status == "DEPLOY_FAILED":
            raise RuntimeError(state.message if state else f"somebody deleted the application {_NAME!r}")
        if state.status == "RUNNING" and are_routed(_LOOK_S):
            return


def stop() -> None:
    """Let the replicas finish their requests, then stop the entrance and leave Ray."""
    from ray import serve

    from cirray.serving.entrances import wait_until_quiet

    wait_until_quiet()
    serve.delete(_NAME)
    leave()


def leave() -> None:
    """Stop the entrance (HAProxy would outlive Ray), also under a service that has not answered yet; leave Ray."""
    import ray

    from cirray.serving.entrances import shut_down

    shut_down()
    ray.shutdown()


def answers(host: str, port: int) -> bool:
    """Whether the application answers at an address; Ray's entrance alone says 404, or 503."""
    connection = http.client.HTTPConnection("127.0.0.1" if host in ("", "0.0.0.0") else host, port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status not in (404, 503)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_port(host: str, port: int, advice: str) -> None:
    """Refuse a port that is in use, before anything is started.

    Raises:
        ConfigError: naming the address.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"The service cannot listen on {host}:{port}: {error.strerror}. {advice}") from None
