"""Ray's actors and tasks give what this process gives: generated texts, features, indexes, captions, reports,
rankings. Killed actors lose and double nothing; errors are sentences."""

import importlib
import json
import os
import runpy
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from made_artifacts import from_triplets, stage_of
from PIL import Image
from ray.data import from_items
from ray.remote_function import RemoteFunction

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.benchmark import Protocol
from cirray.data.config import DataConfig, FolderConfig, ShapesConfig
from cirray.data.shapes.world import write_world
from cirray.evaluation.plan import make_plan
from cirray.evaluation.vectors import rank_vectors
from cirray.features.store import FeatureStore
from cirray.features.vector_files import read_vectors
from cirray.mining.config import MiningConfig
from cirray.mining.pairs import MiningInput, mine_pairs
from cirray.pipelines.captions.caption import run_caption
from cirray.pipelines.captions.config import CaptionRun
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.datasets import read_rows, write_rows
from cirray.pipelines.cluster.shards import ray_runner
from cirray.pipelines.data.config import DoctorRun
from cirray.pipelines.data.doctor import run_doctor
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.texts import mining_tasks
from cirray.pipelines.texts.check import run_check
from cirray.pipelines.texts.config import CheckRun, GenerateRun
from cirray.pipelines.texts.generate import run_generate
from cirray.triplets.captions import caption_table, rejected_captions
from cirray.triplets.schema import rejected_table
from cirray.triplets.store import TripletStore, write_part
from cirray.types import Query, Triplet

FIXTURES = str(Path(__file__).resolve().parents[1] / "fixtures")
SERVICE = SimpleNamespace(**runpy.run_path(f"{FIXTURES}/tiny_service.py"))
IDS = [f"im-{n:04d}" for n in range(600)]
pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def tiny(ray_config):
    """The fixtures as a module that workers can import too."""
    return importlib.import_module("tiny_pipeline")


@pytest.fixture(scope="module")
def inputs(tiny, tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    tiny.write_features(root / "features", tiny.random_vectors(301))
    tiny.write_pairs_artifact(root / "pairs", tiny.chain(300))
    tiny.write_generator(root / "generator", fail=["img-0007", "img-0123"])
    return root


def generate(tiny, inputs, out, ray, size=2, **fields):
    settings = {
        "pairs": str(inputs / "pairs"), "features": (str(inputs / "features"),), 
        "generator": tiny.written(inputs / "generator"),
        "out": str(out), "part_rows": 20, "pool": PoolConfig(size=size), "ray": ray,
    }  # fmt: skip
    return run_generate(GenerateRun(**{**settings, **fields}), tiny.load_knobs)


def files(uri):
    return {str(path.relative_to(uri)): path.read_bytes() for path in Path(uri).rglob("*.parquet")}


def test_one_actor_three_actors_and_no_ray_write_the_same_bytes(tiny, inputs, ray_config, tmp_path, monkeypatch):
    started, remote = [], RemoteFunction._remote
    monkeypatch.setattr(RemoteFunction, "_remote", lambda self, *a, **k: started.append(self) or remote(self, *a, **k))
    direct = generate(tiny, inputs, tmp_path / "direct", ray_config.model_copy(update={"enabled": False}))
    one = generate(tiny, inputs, tmp_path / "one", ray_config, size=1)
    three = generate(tiny, inputs, tmp_path / "three", ray_config, size=3)
    assert direct.counts == one.counts == three.counts == {"pairs": 300, "triplets": 596, "rejected": 4}
    assert len(files(tmp_path / "direct")) == 15 + 2
    assert files(tmp_path / "direct") == files(tmp_path / "one") == files(tmp_path / "three")
    assert direct.digest == one.digest == three.digest
    assert not started  # a task for each part would start a process for each CPU


def test_actors_killed_at_random_lose_and_double_nothing(tiny, inputs, ray_config, tmp_path):
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
    (tmp_path / "gone").mkdir()
    broken = tiny.write_generator(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").unlink()
    with pytest.raises(ArtifactError, match="broken' holds no generator"):
        generate(tiny, inputs, tmp_path / "out", ray_config, generator=tiny.written(broken))
    assert not (tmp_path / "out").exists()


def test_embedding_by_actors_equals_embedding_here_and_decodes_bad_images_to_reasons(tiny, ray_config, tmp_path):
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
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="One actor needs 1000 CPUs .pool.cpus., the cluster has"):
        generate(tiny, inputs, tmp_path / "out", ray_config, pool=PoolConfig(size=1, cpus=1000))
    assert time.monotonic() - begin < 30


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    return SERVICE.make(tmp_path_factory.mktemp("tiny"), shard=5)


def run_of(indexed, out, ray, **fields):
    settings = {"checkpoint": indexed.checkpoint, "images": str(indexed.images), "shard": 5, "pool": PoolConfig(size=2)}
    return IndexRun(**{**settings, "out": str(out), "ray": ray, **fields})


def test_actors_build_the_same_index_as_this_process(indexed, ray_config, tmp_path):
    manifest = run_index(run_of(indexed, tmp_path / "by-actors", ray_config))
    assert manifest.counts == indexed.manifest.counts and manifest.digest == indexed.manifest.digest
    files = manifest.extra["files"]
    assert files == indexed.manifest.extra["files"]
    assert np.load(tmp_path / "by-actors" / "tokens.npy").shape[0] == 24


def test_an_index_whose_actors_the_cluster_can_never_hold_is_refused_at_once(indexed, ray_config, tmp_path):
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="One actor needs 1000 CPUs .pool.cpus., the cluster has"):
        run_index(run_of(indexed, tmp_path / "out", ray_config, pool=PoolConfig(size=1, cpus=1000)))
    assert time.monotonic() - begin < 30 and not (tmp_path / "out.partial").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("w") / "world"
    sizes = {"labelled_families": 6, "heldout_families": 2, "pool_families": 0, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root)
    return {"folder": {"root": str(root)}}


def test_two_actors_caption_as_one_process_does(world, ray_config, tmp_path):
    made = []
    for name, ray in (("here", {"enabled": False}), ("ray", ray_config)):
        tree = {
            "data": world, "parts": ["labelled"], "captioner": "existing", "part_rows": 7, "ray": ray,
            "pool": {"size": 2, "cpus": 0.25}, "out": str(tmp_path / name),
        }  # fmt: skip
        made.append((run_caption(validate(CaptionRun, tree)), str(tmp_path / name)))
    (one, here), (other, there) = made
    assert one.counts == other.counts == {"images": 40, "captions": 30, "rejected": 10} and one.digest == other.digest
    assert caption_table(here) == caption_table(there) and rejected_captions(here) == rejected_captions(there)


def test_the_doctor_s_tasks_report_what_one_process_reports(ray_config, tmp_path):
    for number in range(60):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "07.png").write_bytes(b"")
    (tmp_path / "31.png").write_bytes((tmp_path / "30.png").read_bytes())
    fields = {"folder": str(tmp_path), "dataset": "folder", "shard_rows": 16, "ray_from": 0}
    alone = run_doctor(DoctorRun(**fields, ray=RayConfig(enabled=False)))
    by_ray = run_doctor(DoctorRun(**fields, ray=ray_config))
    assert by_ray == alone and by_ray.exit_status == 1 and by_ray.counts["images"] == 60
    assert {f.code: f.items for f in by_ray.findings} == {"empty": ("07",), "duplicate": ("30=31",)}


def test_tasks_find_the_neighbours_that_one_process_finds(tiny, inputs, ray_config, monkeypatch):
    monkeypatch.setattr(mining_tasks, "LEAST_IMAGES", 10)
    monkeypatch.setattr(mining_tasks, "_BLOCK", 64)
    features, ids = str(inputs / "features"), tuple(sorted(tiny.random_vectors(301)))
    find = mining_tasks.ray_finder(ray_config, [features], len(ids))
    assert mining_tasks.ray_finder(ray_config, [features], 9) is None
    store = FeatureStore.open_many([features])
    here, there = (mine_pairs(MiningInput(ids, store, finder=which), MiningConfig()) for which in (None, find))
    assert here == there and len(here) > 300


def test_two_actors_check_texts_as_one_process_does(indexed, ray_config, tmp_path):
    broken = [("plain/broken", "no picture")]
    features = SERVICE.write_features(tmp_path / "features", indexed.images, indexed.checkpoint, broken)
    names = sorted(FeatureStore.open(features).ids)
    ends = [(names[n], names[(7 * n + 3) % len(names)]) for n in range(len(names))]
    rows = [Triplet(f"t{n:02d}", *pair, f"make it {SERVICE.WORDS[n % 3]}") for n, pair in enumerate(ends)]
    stage = stage_of(tmp_path / "triplets", "triplets")
    write_part(stage.work_uri, "part-00000", from_triplets(rows), rejected_table([]))
    stage.publish({"triplets": len(rows)})
    made = []
    for name, ray in (("here", ray_config.model_copy(update={"enabled": False})), ("ray", ray_config)):
        run = CheckRun(
            triplets=str(tmp_path / "triplets"), checkpoint=indexed.checkpoint, features=(features,),
            tests=("rank", "outrank", "direction"), top_k=3, failing="weight", part_rows=5, ray_from=0, ray=ray,
            out=str(tmp_path / name),
        )  # fmt: skip
        made.append(run_check(run))
    assert made[0].digest == made[1].digest and made[0].counts == made[1].counts
    assert made[0].counts["triplets"] == 24
    assert len(set(TripletStore.open(tmp_path / "ray").table().column("weight").to_pylist())) > 8


def test_a_dataset_of_pairs_is_generated_for_and_its_triplets_are_a_dataset_again(tiny, inputs, ray_config, tmp_path):
    rows = [{"reference_id": f"img-{n:04d}", "target_id": f"img-{n + 1:04d}", "score": 0.5} for n in range(30)]
    made = write_rows(from_items(rows, override_num_blocks=3), "pairs", str(tmp_path / "pairs"))
    assert made.counts == {"pairs": 30}
    generate(tiny, inputs, tmp_path / "out", ray_config, pairs=str(tmp_path / "pairs"))
    triplets = read_rows(str(tmp_path / "out")).materialize()
    kept = triplets.filter(lambda row: row["reference_id"] < row["target_id"])
    assert triplets.count() == 58 and kept.count() == 29  # the generator fails for one of the pairs
    copied = write_rows(kept, "triplets", str(tmp_path / "forward"))
    found = TripletStore.open(tmp_path / "forward").table()
    assert copied.counts == {"triplets": 29} and dict(found.column("scores")[0].as_py()) == {"pair": 0.5}
    with pytest.raises(DataError, match="'img-0000'.* does not fit: 'target_id'. Columns: pair_id, reference_id"):
        write_rows(from_items([{"reference_id": "img-0000"}]), "pairs", str(tmp_path / "bad"))
    with pytest.raises(DataError, match="stands twice among the pairs; every row has its own id"):
        write_rows(from_items([*rows, rows[3]]), "pairs", str(tmp_path / "bad"))
    assert not list(tmp_path.glob("bad*"))
    assert not (tmp_path / "bad").exists()
    with pytest.raises(ArtifactError, match="forward' is there already. Choose another place"):
        write_rows(kept, "triplets", str(tmp_path / "forward"))
    with pytest.raises(ArtifactError, match="is of kind 'features'; rows are read of: pairs, triplets, captions"):
        read_rows(str(inputs / "features"))


def save(folder, name, ids, vectors):
    np.save(folder / f"{name}.npy", vectors)
    (folder / f"{name}.ids.json").write_text(json.dumps(list(ids)))
    return read_vectors(folder / f"{name}.npy")


def test_ray_tasks_count_what_this_process_counts_and_their_errors_arrive(ray_config, tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (600, 4, 5)).astype(np.float16)
    shards = [save(tmp_path, f"part{n}", IDS[n::2], vectors[n::2]) for n in range(2)]
    queries = [Query(f"q{n}", IDS[n], "text", (IDS[3 * n + 1], IDS[n + 7])) for n in range(40)]
    asked = save(tmp_path, "queries", [q.query_id for q in queries], rng.integers(-2, 3, (40, 5)).astype(np.float32))
    plan = make_plan(queries, IDS, Protocol("toy"))
    expected = rank_vectors(plan, asked, shards)
    broken = vectors[1::2].copy()
    broken[9] = np.nan
    bad = [shards[0], save(tmp_path, "broken", IDS[1::2], broken)]
    with ray_runner(ray_config, least_rows=1) as run:
        found = rank_vectors(plan, asked, shards, parts=3, run=run)
        with pytest.raises(DataError, match=f"gallery image '{IDS[19]}' holds NaN"):
            rank_vectors(plan, asked, bad, run=run)
    assert found.verdicts == expected.verdicts and found.rankings == expected.rankings
