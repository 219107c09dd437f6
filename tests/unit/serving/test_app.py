import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from ray.serve.schema import LoggingConfig

from cirray.cli.main import resolve
from cirray.core.config import load_config
from cirray.core.errors import ArtifactError, ConfigError, IndexMismatchError, ServingError
from cirray.core.places import HOME
from cirray.serving.app import DEPLOYMENT_OPTIONS, NotServableError, build_app
from cirray.serving.config import FAST_PATH, HAPROXY, FileArgs, ServeArgs, ServeRun, ServingSettings
from cirray.serving.gate import Gate
from cirray.serving.launch import check_port, check_service, fast_path, plan_of, run_serve

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def shipped():
    return yaml.safe_load((ROOT / "serve_configs" / "retriever.yaml").read_text())


@pytest.fixture
def indexed(monkeypatch):
    """As if an index stood in its usual place."""
    monkeypatch.setattr("cirray.serving.launch.chosen", lambda run: (run.checkpoint, run.index))


def load_shipped(name):
    return yaml.safe_load((ROOT / "serve_configs" / name).read_text())


def test_the_shipped_config_is_understood_by_serve_and_by_this_package(shipped):
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(shipped)
    application = shipped["applications"][0]
    assert schema.applications[0].import_path == f"{build_app.__module__}:{build_app.__name__}"
    assert ServeArgs.model_validate(application["args"]) == ServeArgs()
    assert ServingSettings.model_validate(application["deployments"][0]["user_config"]) == ServingSettings()


@pytest.mark.parametrize("name", ["retriever.yaml", "production.yaml"])
def test_a_shipped_config_moves_with_root_and_with_cirray_root(name, monkeypatch):
    args, file = load_shipped(name)["applications"][0]["args"], f"file={ROOT / 'serve_configs' / name}"
    moved = plan_of(resolve(ServeRun, [], [file, "root=/x"]).config).args
    assert (moved.checkpoint, moved.index, moved.device) == ("/x/checkpoint", "/x/index", "cpu")
    assert FileArgs.model_validate(args).checkpoint == f"{HOME}/checkpoint"
    monkeypatch.setenv("CIRRAY_ROOT", "s3://bucket/y")
    assert plan_of(resolve(ServeRun, [], [file]).config).args.index == "s3://bucket/y/index"
    assert plan_of(resolve(ServeRun, [], [file, "root=/x"]).config).args.index == "/x/index"
    for_ray = FileArgs.model_validate(args)
    assert (for_ray.checkpoint, for_ray.threads) == ("s3://bucket/y/checkpoint", 1)
    assert FileArgs.model_validate({**args, "index": "/mine"}).index == "/mine"


def test_the_shipped_config_listens_on_this_machine_only_and_bounds_its_queue(shipped):
    deployment = shipped["applications"][0]["deployments"][0]
    assert shipped["http_options"]["host"] == "127.0.0.1"
    assert deployment["max_queued_requests"] > 0
    assert deployment["max_ongoing_requests"] >= 2 * deployment["user_config"]["max_batch_size"]
    assert deployment["backpressure_config"] == DEPLOYMENT_OPTIONS["backpressure_config"]
    named = {name: deployment[name] for name in DEPLOYMENT_OPTIONS if name in deployment}
    assert named == {name: DEPLOYMENT_OPTIONS[name] for name in named}


def test_the_production_config_has_a_second_replica_for_when_one_dies(shipped):
    from ray.serve.schema import ServeDeploySchema

    config = load_shipped("production.yaml")
    ServeDeploySchema.model_validate(config)
    deployment = config["applications"][0]["deployments"][0]
    args = ServeArgs.model_validate(config["applications"][0]["args"])
    assert deployment["num_replicas"] >= 2 and args.allowed_hosts
    assert args.max_in_flight <= deployment["num_replicas"] * deployment["max_ongoing_requests"]
    ServingSettings.model_validate(deployment["user_config"])


def test_places_at_the_gate_fit_into_the_replicas_so_that_ray_never_queues(shipped):
    assert ServeArgs().max_in_flight <= shipped["applications"][0]["deployments"][0]["max_ongoing_requests"]
    assert ServeArgs().max_in_flight <= DEPLOYMENT_OPTIONS["max_ongoing_requests"]


def test_the_fast_path_file_and_the_flag_set_the_same_variables():
    lines = (ROOT / "serve_configs" / "fastpath.env").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert pairs.pop(HAPROXY) == "$(command -v cirray-haproxy)" and fast_path()[HAPROXY].endswith("/cirray-haproxy")
    assert {name: value.strip('"') for name, value in pairs.items()} == FAST_PATH
    module, _, name = FAST_PATH["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    made = getattr(importlib.import_module(module), name)()
    assert [item.cls for item in made] == [Gate]


def test_haproxy_can_hold_more_connections_than_there_are_places():
    assert int(FAST_PATH["RAY_SERVE_HAPROXY_MAXCONN"]) > 10 * ServeArgs().max_in_flight


def test_building_the_application_checks_its_artifacts_first(tiny, tmp_path, write_checkpoint):
    assert build_app(ServeArgs(checkpoint=tiny.checkpoint, index=tiny.index))
    with pytest.raises(NotServableError, match="nowhere"):
        build_app(ServeArgs(checkpoint=str(tmp_path / "nowhere"), index=tiny.index))
    with pytest.raises(NotServableError, match="kind 'checkpoint'; 'index' is needed"):
        build_app(ServeArgs(checkpoint=tiny.checkpoint, index=tiny.checkpoint))
    with pytest.raises(NotServableError, match="built by encoder"):
        build_app(ServeArgs(checkpoint=write_checkpoint(tmp_path / "other", seed=5), index=tiny.index))


def test_rays_build_task_reports_what_cannot_be_served_once_and_in_one_sentence(tmp_path, monkeypatch):
    """Any other exception is raised again by Ray's task, which is then retried three times with a traceback each."""
    from ray.serve._private import application_state

    monkeypatch.setattr(application_state, "configure_component_logger", lambda **given: None)
    build = application_state.build_serve_application._function
    args = {"checkpoint": str(tmp_path / "nowhere"), "index": str(tmp_path / "nothing")}
    _, deployments, said = build("cirray.serving.app:build_app", "v", "cirray", args, LoggingConfig(), None, {}, {}, {})
    assert deployments is None and "nowhere" in said and "Traceback" not in said and "\n" not in said


def test_serve_run_of_the_builder_ends_with_one_line(tmp_path):
    result = CliRunner().invoke(
        click.Command("run", callback=lambda: build_app(ServeArgs(checkpoint=str(tmp_path / "nowhere"))))
    )
    assert result.exit_code != 0 and result.output.startswith("Error: ") and len(result.output.splitlines()) == 1


def test_an_index_of_the_same_weights_under_another_name_is_accepted(tiny, tmp_path, write_checkpoint):
    twin = Path(write_checkpoint(tmp_path / "twin"))
    manifest = json.loads((twin / "manifest.json").read_text()) | {"digest": "0" * 32}
    (twin / "manifest.json").write_text(json.dumps(manifest))
    assert build_app(ServeArgs(checkpoint=str(twin), index=tiny.index))


def test_a_taken_port_is_named_before_anything_starts(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}"):
            check_port("127.0.0.1", port, "Choose another port.")


@pytest.fixture
def no_cluster(monkeypatch):
    """Whatever is wrong must be said before a cluster is started."""
    monkeypatch.setattr("cirray.serving.launch.start", lambda plan, told: pytest.fail("a cluster was started"))
    monkeypatch.setattr("cirray.serving.launch.ray_address", lambda: "")
    monkeypatch.setattr("cirray.serving.launch.set_default", lambda name, value: None)
    monkeypatch.setattr("cirray.serving.launch.private_cluster", lambda **given: None)


def test_what_cannot_be_served_is_said_before_a_cluster_is_started(tmp_path, tiny, no_cluster, write_checkpoint):
    nowhere, other = str(tmp_path / "nowhere"), write_checkpoint(tmp_path / "other", seed=5)
    port = free_port()
    with pytest.raises(ArtifactError, match="nowhere"):
        run_serve(ServeRun(checkpoint=nowhere, index=tiny.index, port=port))
    with pytest.raises(IndexMismatchError, match="built by encoder"):
        run_serve(ServeRun(checkpoint=other, index=tiny.index, port=port))
    with pytest.raises(ServingError, match="device 'cuda:99'"):
        run_serve(ServeRun(checkpoint=tiny.checkpoint, index=tiny.index, device="cuda:99", port=port))


def test_the_check_leaves_no_model_in_the_process_that_asks(tiny):
    before = resident_mb()
    check_service(ServeArgs(checkpoint=tiny.checkpoint, index=tiny.index))
    assert resident_mb() - before < 30


def test_the_process_that_starts_the_service_needs_no_torch():
    script = "import cirray.serving.launch, cirray.serving.app, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_config_file_of_serve_says_what_cirray_serve_starts(tmp_path, shipped, indexed):
    plan = plan_of(ServeRun(file=str(ROOT / "serve_configs" / "retriever.yaml")))
    assert plan.args == ServeArgs() and (plan.http["host"], plan.http["port"]) == ("127.0.0.1", 8000)
    assert plan.deployment["user_config"]["max_batch_size"] == 32 and "name" not in plan.deployment
    assert plan_of(ServeRun(port=9, replicas=2)).deployment == {"num_replicas": 2}
    changed = plan_of(
        load_config(
            ServeRun,
            None,
            [f"file={ROOT / 'serve_configs' / 'retriever.yaml'}", "port=9000", "replicas=1", "index=mine"],
        )
    )
    assert (changed.http["host"], changed.http["port"], changed.args.index) == ("127.0.0.1", 9000, "mine")
    assert changed.deployment == {**plan.deployment, "num_replicas": 1} and changed.args.threads == plan.args.threads
    (tmp_path / "other.yaml").write_text("checkpoint: x\n")
    for name, words in (("other.yaml", "no Serve config file"), ("none.yaml", "cannot be read")):
        with pytest.raises(ConfigError, match=words):
            plan_of(ServeRun(file=str(tmp_path / name)))


def test_a_port_that_haproxy_would_miss_is_named_with_what_moves_it(tiny, no_cluster, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("RAY_SERVE_HAPROXY_STATS_PORT", str(taken.getsockname()[1]))
        with pytest.raises(ConfigError, match="RAY_SERVE_HAPROXY_STATS_PORT"):
            run_serve(ServeRun(checkpoint=tiny.checkpoint, index=tiny.index, port=free_port(), fast=True))


def test_the_fast_path_cannot_be_chosen_for_a_cluster_that_runs(monkeypatch, no_cluster, indexed):
    monkeypatch.setattr("cirray.serving.launch.ray_address", lambda: "10.0.0.1:6379")
    with pytest.raises(ConfigError, match="fastpath.env"):
        run_serve(ServeRun(fast=True))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
