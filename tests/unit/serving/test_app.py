import json
import socket
from pathlib import Path

import pytest
import yaml

from cirray.core.errors import ArtifactError, ConfigError, IndexMismatchError
from cirray.runs import ServeRun
from cirray.serving.app import DEPLOYMENT_OPTIONS, build_app
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.launch import check_port, run_serve

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def shipped():
    return yaml.safe_load((ROOT / "serve_configs" / "retriever.yaml").read_text())


def test_the_shipped_config_is_understood_by_serve_and_by_this_package(shipped):
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(shipped)
    application = shipped["applications"][0]
    assert schema.applications[0].import_path == f"{build_app.__module__}:{build_app.__name__}"
    assert ServeArgs.model_validate(application["args"]) == ServeArgs()
    assert ServingSettings.model_validate(application["deployments"][0]["user_config"]) == ServingSettings()


def test_the_shipped_config_listens_on_this_machine_only_and_bounds_its_queue(shipped):
    deployment = shipped["applications"][0]["deployments"][0]
    assert shipped["http_options"]["host"] == "127.0.0.1"
    assert deployment["max_queued_requests"] > 0
    assert deployment["max_ongoing_requests"] >= 2 * deployment["user_config"]["max_batch_size"]
    assert deployment["backpressure_config"] == DEPLOYMENT_OPTIONS["backpressure_config"]
    named = {name: deployment[name] for name in DEPLOYMENT_OPTIONS if name in deployment}
    assert named == {name: DEPLOYMENT_OPTIONS[name] for name in named}


def test_the_fast_path_file_holds_variables_only():
    lines = (ROOT / "serve_configs" / "fastpath.env").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert pairs["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
    assert all(name.startswith("RAY_SERVE_") for name in pairs)


def test_building_the_application_checks_its_artifacts_first(tiny, tmp_path, write_checkpoint):
    assert build_app(ServeArgs(checkpoint=tiny.checkpoint, index=tiny.index))
    with pytest.raises(ArtifactError, match="nowhere"):
        build_app(ServeArgs(checkpoint=str(tmp_path / "nowhere"), index=tiny.index))
    with pytest.raises(ArtifactError, match="kind 'checkpoint'; 'index' is needed"):
        build_app(ServeArgs(checkpoint=tiny.checkpoint, index=tiny.checkpoint))
    with pytest.raises(IndexMismatchError, match="built by encoder"):
        build_app(ServeArgs(checkpoint=write_checkpoint(tmp_path / "other", seed=5), index=tiny.index))


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
            check_port("127.0.0.1", port)


def test_serving_missing_artifacts_fails_before_a_cluster_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr("cirray.serving.launch.serve", None)
    with pytest.raises(ArtifactError, match="nowhere"):
        run_serve(ServeRun(checkpoint=str(tmp_path / "nowhere"), index=str(tmp_path / "nothing")))
