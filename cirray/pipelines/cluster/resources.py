"""Start, join and leave Ray clusters; settings of Ray Data that a small machine needs."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
import ray.data

from cirray.core.environ import private_cluster, ray_address
from cirray.core.errors import ConfigError, reason_of
from cirray.core.interrupts import own_handlers
from cirray.core.log import get_logger, without_line
from cirray.pipelines.cluster.config import PoolConfig, RayConfig

_LEVEL_TOLD = b"Set ray log level from environment variable"
_TOO_SLOW = "timed out during startup"
_LEAST_LOGICAL_CPUS = 8
_STARTED: set[str] = set()
"""Addresses of clusters that this process started."""
_RAY_LOGGERS = ("ray", "ray.data", "ray.train", "ray.tune")


@dataclass(frozen=True)
class ClusterInfo:
    """The cluster of a stage. `private`: started here, and shut down at the end."""

    private: bool
    cpus: float
    gpus: float
    nodes: int
    largest: tuple[float, float] = (0.0, 0.0)
    """CPUs and GPUs of the machine that has the most of each."""
    own: bool = False
    """This process started it, for this stage or an earlier one, so it ends with this process."""


@contextmanager
def cluster(config: RayConfig) -> Iterator[ClusterInfo]:
    """Join the cluster that the config or `RAY_ADDRESS` names, or start a private one for the length of the block.

    A cluster that this process has joined already is used and left alone.

    Raises ConfigError when the named cluster does not answer.
    """
    if ray.is_initialized():
        yield _info(private=False)
        return
    address = config.address or ray_address()
    private = address in ("", "local")
    with own_handlers():
        if private:
            _start_private(config)
        else:
            _join(address, config)
    try:
        with _hushed(not config.show_output):
            yield _info(private)
    finally:
        ray.shutdown()


@contextmanager
def data_context(config: RayConfig, block_bytes: int = 128 * 2**20) -> Iterator[Any]:
    """Ray Data's settings for one pipeline: no bars of its own, workers that may die, and no block split below
    `block_bytes`, so that one part stays one block.

    Its guard against hanging is off: it counts the loading of models too (`patience` has another).
    """
    before = ray.data.DataContext.get_current()
    context = before.copy()
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = context.enable_operator_progress_bars = config.show_output
    context.print_on_execution_start = config.show_output
    context.target_max_block_size = max(block_bytes, 128 * 2**20)
    context.max_consecutive_actor_init_deaths = 3
    ray.data.DataContext._set_current(context)
    try:
        with _hushed(not config.show_output):
            yield context
    finally:
        ray.data.DataContext._set_current(before)


def check_pool(pool: PoolConfig | None, config: RayConfig, info: ClusterInfo) -> None:
    """Refuse actors of which no machine of this cluster can hold one; Ray would wait for ever.

    Raises ConfigError naming what one needs and what is there.
    """
    if pool is None or config.autoscaling:
        return
    for name, amount, there in zip(("cpus", "gpus"), (pool.cpus, pool.gpus), info.largest, strict=True):
        if amount > there:
            raise ConfigError(
                f"One actor needs {amount:g} {name.upper()[:-1]}s (pool.{name}), the cluster has no machine with more "
                f"than {there:g}. Lower it, name a larger cluster, or set ray.autoscaling=true if it grows."
            )


def logical_cpus(config: RayConfig) -> int:
    """Logical CPUs of a private cluster: actors, reads and writes of one pipeline must all find one."""
    return config.num_cpus or max(_LEAST_LOGICAL_CPUS, os.cpu_count() or 1)


def check_reachable(address: str, timeout_s: float = 5.0) -> None:
    """Try to reach a cluster's port; ray.init would wait for minutes.

    Raises OSError or ValueError when nothing answers at `host:port`, or it is not of that form.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError("an address is `auto` or `host:port`")
    socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()


def _start_private(config: RayConfig) -> None:
    """Start a private cluster, with a second try, since on a busy machine Ray's fixed 30 s may not do.

    Raises ConfigError when that fails too.
    """
    private_cluster(quiet=not config.show_output)
    options: dict[str, Any] = {"_temp_dir": config.temp_dir} if config.temp_dir else {}
    for attempt in (1, 2):
        try:
            with nullcontext() if config.show_output else without_line(_LEVEL_TOLD):
                ray.init(
                    address="local", num_cpus=logical_cpus(config), num_gpus=config.num_gpus,
                    object_store_memory=config.object_store_memory, include_dashboard=config.dashboard,
                    log_to_driver=config.show_output,
                    logging_level=logging.INFO if config.show_output else logging.ERROR, **options,
                )  # fmt: skip
            _STARTED.add(_address())
            return
        except Exception as error:
            # Ray raises no narrower class here.
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            get_logger(__name__).info("Ray did not start in its time (try %d of 2): the machine is busy", attempt)
    raise ConfigError(
        "Ray could not be started on this machine within twice 30 s. End other programs, or join a cluster that runs "
        "(ray.address=HOST:PORT), or do without where the stage allows it (ray.enabled=false)."
    )


def _join(address: str, config: RayConfig) -> None:
    try:
        check_reachable(address)
        ray.init(
            address=address, log_to_driver=config.show_output,
            logging_level=logging.INFO if config.show_output else logging.ERROR,
        )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        reason = reason_of(error, 200)
        raise ConfigError(
            f"The Ray cluster at {address!r} cannot be joined: {reason}. Start it (`ray start --head`), correct "
            "ray.address or RAY_ADDRESS, or set ray.address=local for a private cluster."
        ) from None


def _info(private: bool) -> ClusterInfo:
    total, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus, gpus = (max((float(node.get(name, 0)) for node in nodes), default=0.0) for name in ("CPU", "GPU"))
    info = ClusterInfo(
        private,
        float(total.get("CPU", 0)),
        float(total.get("GPU", 0)),
        len(nodes),
        (cpus, gpus),
        _address() in _STARTED,
    )
    get_logger(__name__).debug("ray cluster: %s", info)
    return info


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address) if ray.is_initialized() else ""


@contextmanager
def _hushed(quiet: bool) -> Iterator[None]:
    """Inside, Ray's loggers show only errors."""
    loggers = [logging.getLogger(name) for name in _RAY_LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers if quiet else ():
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
