"""Ray Data and a direct call give the same bytes; killed actors lose and double nothing; errors are sentences."""

import importlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

FIXTURES = str(Path(__file__).resolve().parents[1] / "fixtures")
pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def tiny():
    """The fixtures as a module that workers can import too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIXTURES)
        patch.setenv("PYTHONPATH", FIXTURES, prepend=os.pathsep)
        yield importlib.import_module("tiny_pipeline")


@pytest.fixture(scope="module")
def ray_config(tiny):
    from cirray.pipelines.cluster.config import RayConfig
    from cirray.pipelines.cluster.resources import cluster

    config = RayConfig(object_store_memory=150_000_000, no_progress_timeout_s=60)
    with cluster(config) as info:
        assert info.private and info.cpus >= 8
        yield config


@pytest.fixture(scope="module")
def inputs(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    tiny.write_features(root / "features", tiny.random_vectors(301))
    tiny.write_pairs_artifact(root / "pairs", tiny.chain(300))
    tiny.write_generator(root / "generator", fail=["img-0007", "img-0123"])
    return root


def generate(tiny, inputs, out, ray, size=2, **fields):
    from cirray.pipelines.cluster.config import PoolConfig
    from cirray.pipelines.texts.config import GenerateRun
    from cirray.pipelines.texts.generate import run_generate

    settings = {
        "pairs": str(inputs / "pairs"), "features": (str(inputs / "features"),), 
        "generator": tiny.written(inputs / "generator"),
        "out": str(out), "part_rows": 20, "pool": PoolConfig(size=size), "ray": ray,
    }  # fmt: skip
    return run_generate(GenerateRun(**{**settings, **fields}), tiny.load_knobs)


def files(uri):
    return {str(path.relative_to(uri)): path.read_bytes() for path in Path(uri).rglob("*.parquet")}


def test_one_actor_three_actors_and_no_ray_write_the_same_bytes(tiny, inputs, ray_config, tmp_path):
    direct = generate(tiny, inputs, tmp_path / "direct", ray_config.model_copy(update={"enabled": False}))
    one = generate(tiny, inputs, tmp_path / "one", ray_config, size=1)
    three = generate(tiny, inputs, tmp_path / "three", ray_config, size=3)
    assert direct.counts == one.counts == three.counts == {"pairs": 300, "triplets": 596, "rejected": 4}
    assert len(files(tmp_path / "direct")) == 15 + 2
    assert files(tmp_path / "direct") == files(tmp_path / "one") == files(tmp_path / "three")
    assert direct.digest == one.digest == three.digest


def test_actors_killed_at_random_lose_and_double_nothing(tiny, inputs, ray_config, tmp_path):
    from cirray.triplets.store import TripletStore

    (tmp_path / "pids").mkdir()
    (tmp_path / "calls").mkdir()
    tiny.write_generator(tmp_path / "slow", sleep=0.01, pids=str(tmp_path / "pids"), calls=str(tmp_path / "calls"))
    killed, stop = [], threading.Event()

    def hunt():
        while not stop.wait(0.15) and len(killed) < 3:
            fresh = [int(path.name) for path in (tmp_path / "pids").iterdir() if int(path.name) not in killed]
            if fresh:
                killed.append(fresh[0])
                os.kill(fresh[0], signal.SIGKILL)

    hunter = threading.Thread(target=hunt, daemon=True)
    hunter.start()
    manifest = generate(tiny, inputs, tmp_path / "out", ray_config, generator=tiny.written(tmp_path / "slow"))
    stop.set()
    hunter.join()
    assert len(killed) >= 2
    assert manifest.counts == {"pairs": 300, "triplets": 600, "rejected": 0}
    ids = TripletStore.open(tmp_path / "out").table().column("triplet_id").to_pylist()
    assert len(ids) == len(set(ids)) == 600
    served = sum(int(path.read_text()) for path in (tmp_path / "calls").iterdir())
    print(f"killed {len(killed)} actors; {served} pairs served for 300")
    assert served <= 300 + 20 * 2 * len(killed)


def test_an_error_in_a_worker_is_one_sentence_of_this_package(tiny, inputs, ray_config, tmp_path):
    from cirray.core.errors import ArtifactError

    (tmp_path / "gone").mkdir()
    broken = tiny.write_generator(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").unlink()
    with pytest.raises(ArtifactError, match="broken' holds no generator"):
        generate(tiny, inputs, tmp_path / "out", ray_config, generator=tiny.written(broken))
    assert not (tmp_path / "out").exists()


def test_embedding_by_actors_equals_embedding_here_and_decodes_bad_images_to_reasons(tiny, ray_config, tmp_path):
    from cirray.data.config import DataConfig, FolderConfig
    from cirray.pipelines.cluster.config import PoolConfig
    from cirray.pipelines.features.config import EmbedRun
    from cirray.pipelines.features.embed import run_embed

    tiny.write_images(tmp_path / "images", 60, broken=(5, 40, 41))
    tower = tiny.write_tower(tmp_path / "tower")
    made = {}
    for name, enabled in (("here", False), ("ray", True)):
        run = EmbedRun(
            data=DataConfig(folder=FolderConfig(root=str(tmp_path / "images"))), tower=tower,
            out=str(tmp_path / name), shard_rows=8, batch=4, pool=PoolConfig(size=1),
            ray=ray_config.model_copy(update={"enabled": enabled}),
        )  # fmt: skip
        made[name] = run_embed(run)
    assert made["ray"].counts == {"images": 57, "rejected": 3}
    assert made["ray"].digest == made["here"].digest
    assert made["ray"].extra["shards"] == made["here"].extra["shards"]


def test_actors_that_the_cluster_can_never_hold_are_refused_at_once(tiny, inputs, ray_config, tmp_path):
    from cirray.core.errors import ConfigError
    from cirray.pipelines.cluster.config import PoolConfig

    begin = time.monotonic()
    with pytest.raises(ConfigError, match="One actor needs 1000 CPUs .pool.cpus., the cluster has"):
        generate(tiny, inputs, tmp_path / "out", ray_config, pool=PoolConfig(size=1, cpus=1000))
    assert time.monotonic() - begin < 30
