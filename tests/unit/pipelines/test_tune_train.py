"""What Ray Train's cleaners are told, without a cluster."""

import logging
from types import SimpleNamespace

import pytest
import ray
from ray.train.v2._internal import constants

from cirray.pipelines.training import tune_workers as tune_train


@pytest.fixture(autouse=True)
def cluster(monkeypatch):
    names = constants.ENV_VARS_TO_PROPAGATE
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here:6379"))
    yield
    names.discard("RAY_ADDRESS")


def test_this_version_of_ray_hands_the_clusters_name_on():
    assert "RAY_ADDRESS" not in constants.get_env_vars_to_propagate()
    tune_train.show_cluster_to_cleaners()
    assert constants.get_env_vars_to_propagate()["RAY_ADDRESS"] == "here:6379"


def test_a_ray_without_that_list_is_said_and_the_trial_goes_on(monkeypatch, caplog):
    monkeypatch.delattr(constants, "ENV_VARS_TO_PROPAGATE")
    monkeypatch.setattr(logging.getLogger("cirray"), "propagate", True)
    tune_train.show_cluster_to_cleaners()
    assert "does not pass a cluster's name" in caplog.text
