"""A private cluster is closed to others and large enough on paper; no cluster is started here."""

import os

import pytest
from ray._private.ray_logging import LogDeduplicator

from cirray.core.config import validate
from cirray.core.environ import private_cluster, ray_address
from cirray.core.errors import ConfigError
from cirray.pipelines.cluster import resources
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.resources import ClusterInfo, check_pool, cluster, logical_cpus


@pytest.fixture
def bare(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAY_BACKEND_LOG_LEVEL", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_private_cluster_gets_a_token_of_its_own_and_no_file(bare, tmp_path):
    bare.setenv("HOME", str(tmp_path))
    private_cluster()
    token = os.environ["RAY_AUTH_TOKEN"]
    assert len(token) == 64 and list(tmp_path.iterdir()) == []
    private_cluster()
    assert os.environ["RAY_AUTH_TOKEN"] == token


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_the_users_choice_of_authentication_is_kept(bare, mode):
    bare.setenv("RAY_AUTH_MODE", mode)
    private_cluster()
    assert os.environ["RAY_AUTH_MODE"] == mode and "RAY_AUTH_TOKEN" not in os.environ


def test_usage_statistics_are_off_unless_the_user_wants_them(bare):
    bare.setenv("RAY_USAGE_STATS_ENABLED", "1")
    private_cluster()
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_the_address_comes_from_the_environment(bare):
    assert ray_address() == ""
    bare.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_address() == "10.0.0.1:6379"


def test_logical_cpus_leave_room_on_a_small_machine():
    assert logical_cpus(RayConfig()) >= 8
    assert logical_cpus(RayConfig(num_cpus=3)) == 3


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "host:port"])
def test_a_cluster_that_does_not_answer_is_named_at_once(bare, address):
    bare.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"The Ray cluster at '{address}' cannot be joined: .* ray.address=local"):
        with cluster(RayConfig()):
            pass


class SlowRay:
    """Stands for ray.init on a busy machine: the first starts take too long."""

    def __init__(self, failures, text="The current node timed out during startup. This could happen"):
        self.left, self.text, self.calls = failures, text, 0

    def __call__(self, **_):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise Exception(self.text)


def test_a_cluster_that_starts_too_slowly_gets_a_second_try(bare):
    slow = SlowRay(1)
    bare.setattr(resources.ray, "init", slow)
    resources._start_private(RayConfig())
    assert slow.calls == 2


LEVEL = "[2026-12-01 00:36:49,363 I 1 1] logging.cc:303: Set ray log level from environment variable X to 3\n"


@pytest.mark.parametrize(("shown", "told"), [(False, "before\nafter\n"), (True, f"before\n{LEVEL}after\n")])
def test_rays_line_about_its_log_level_is_left_out_and_no_other(bare, capfd, shown, told):
    bare.setattr(resources.ray, "init", lambda **_: os.write(2, f"before\n{LEVEL}after\n".encode()))
    resources._start_private(RayConfig(show_output=shown))
    assert capfd.readouterr().err == told


def test_rays_warning_of_many_workers_is_left_out_and_no_other():
    lines = [
        "WARNING: 8 PYTHON worker processes have been started on node: 7b with address: 127.0.0.1, which is",
        "other",
    ]
    keep = LogDeduplicator(5, None, os.environ["RAY_DEDUP_LOGS_SKIP_REGEX"])
    (found,) = keep.deduplicate({"lines": lines, "pid": "raylet", "is_err": False})
    assert found["lines"] == ["other"]


def test_two_slow_starts_are_one_sentence_and_other_errors_stay_themselves(bare):
    bare.setattr(resources.ray, "init", SlowRay(2))
    with pytest.raises(ConfigError, match="could not be started on this machine"):
        resources._start_private(RayConfig())
    other = SlowRay(1, "no space left")
    bare.setattr(resources.ray, "init", other)
    with pytest.raises(Exception, match="no space left"):
        resources._start_private(RayConfig())
    assert other.calls == 1


def test_pools_have_a_size_or_bounds_and_their_errors_say_which():
    assert PoolConfig().bounds == (2, 2) and PoolConfig(size=5).bounds == (5, 5)
    assert PoolConfig(max=8).bounds == (1, 8) and PoolConfig(size=3, min=2, max=2).bounds == (2, 2)
    assert all(validate(PoolConfig, pool.to_dict()) == pool for pool in (PoolConfig(), PoolConfig(min=2, max=3)))
    assert PoolConfig(gpus=0.5).device == "cuda" and PoolConfig(gpus=2).gpus == 2
    for fields, told in (
        ({"min": 2}, "min 2 says where a growing pool begins; give max too, or size alone"),
        ({"min": 4, "max": 3}, "max 3 is below min 4; a pool grows from min to max"),
        ({"gpus": 1.5}, r"gpus 1.5 is neither a share of one GPU \(0.5\) nor a whole number"),
    ):
        with pytest.raises(ValueError, match=told):
            PoolConfig(**fields)


def test_an_actor_must_fit_on_one_machine_and_not_on_all_of_them_together():
    two = ClusterInfo(private=False, cpus=8, gpus=2, nodes=2, largest=(4, 1))
    check_pool(PoolConfig(cpus=4, gpus=1), RayConfig(), two)
    check_pool(None, RayConfig(), two)
    told = r"One actor needs 2 GPUs .pool.gpus., the cluster has no machine with more than 1. .* ray.autoscaling=true"
    with pytest.raises(ConfigError, match=told):
        check_pool(PoolConfig(gpus=2), RayConfig(), two)
    check_pool(PoolConfig(gpus=2), RayConfig(autoscaling=True), two)
