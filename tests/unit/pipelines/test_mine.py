"""The mining stage on a small shapes world: parts, exclusions, an honest precision."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.errors import ArtifactError, DataError
from cirray.data.config import DataConfig, FolderConfig, ShapesConfig
from cirray.data.shapes.world import read_scenes, write_world
from cirray.mining.config import MiningConfig
from cirray.pipelines.texts.config import MineRun
from cirray.pipelines.texts.judging import single_edit_share, text_accuracy
from cirray.pipelines.texts.mine import run_mine
from cirray.triplets.pairs import pair_table, read_pairs, to_pairs
from cirray.triplets.schema import triplet_table
from cirray.types import Pair

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))
SIZES = ShapesConfig(
    labelled_families=4, heldout_families=1, pool_families=12, gallery_references=2, edits_per_reference=3
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A world, and features that are its scenes: cell by cell one-hot, so that near means few cells apart."""
    root = tmp_path_factory.mktemp("mine")
    write_world(SIZES, root / "world")
    scenes = read_scenes(root / "world")
    rng, codes = np.random.default_rng(0), {}
    vectors = {}
    for image, scene in scenes.items():
        cells = [codes.setdefault(thing, rng.normal(size=8)) for thing in scene.cells]
        vectors[image] = np.stack(cells).astype(np.float16)
    TINY.write_features(root / "features", vectors)
    return root


def run_of(world, out, **fields):
    data = DataConfig(folder=FolderConfig(root=str(world / "world")))
    return MineRun(**{"data": data, "features": (str(world / "features"),), "out": str(out), **fields})


def test_pairs_come_from_the_pool_and_their_precision_is_reported(world, tmp_path):
    manifest = run_mine(run_of(world, tmp_path / "p", mining={"policy": {"settings": {"rank_high": 1}}}))
    pairs = to_pairs(read_pairs(tmp_path / "p"))
    assert manifest.counts["pairs"] == len(pairs) > 20
    assert all(pair.reference_id.startswith("pool") and pair.target_id.startswith("pool") for pair in pairs)
    uniform = run_mine(run_of(world, tmp_path / "u", mining=MiningConfig(policy="uniform")))
    assert manifest.metrics["single_edits"] > 0.6 > 0.3 > uniform.metrics["single_edits"]


def test_memory_does_not_make_another_run_but_the_seed_does(world, tmp_path):
    first = run_mine(run_of(world, tmp_path / "p"))
    assert run_mine(run_of(world, tmp_path / "p", mining=MiningConfig(memory_mib=8))) == first
    with pytest.raises(ArtifactError, match="mining.seed: 0 there, 3 now"):
        run_mine(run_of(world, tmp_path / "p", mining=MiningConfig(seed=3)))


def test_gallery_images_are_never_paired_by_default(world, tmp_path):
    with pytest.raises(DataError, match="All 8 images of gallery are excluded"):
        run_mine(run_of(world, tmp_path / "p", parts=("gallery",)))
    mixed = run_mine(run_of(world, tmp_path / "q", parts=("pool", "gallery")))
    assert mixed.counts["pairs"] > 0
    assert all("gal-" not in pair.reference_id + pair.target_id for pair in to_pairs(read_pairs(tmp_path / "q")))
    run_mine(run_of(world, tmp_path / "r", parts=("gallery",), exclude_parts=()))
    assert all(pair.reference_id.startswith("gal-") for pair in to_pairs(read_pairs(tmp_path / "r")))


def test_a_file_of_excluded_ids_is_obeyed(world, tmp_path):
    banned = sorted({pair.reference_id for pair in _pairs(world, tmp_path / "p")})[:5]
    written = [
        banned[0],
        f"./{banned[1]}.png",
        f"{banned[2]}.png",
        f"\u00a0{banned[3]} ",
        f"{banned[4]}.JPG",
        "unknown",
    ]
    (tmp_path / "banned.txt").write_text("\n".join(written) + "\n\n")
    found = _pairs(world, tmp_path / "q", exclude_ids=str(tmp_path / "banned.txt"))
    assert found and not any({pair.reference_id, pair.target_id} & set(banned) for pair in found)
    with pytest.raises(DataError, match="excluded ids .* cannot be read"):
        _pairs(world, tmp_path / "r", exclude_ids=str(tmp_path / "absent.txt"))


def test_existing_pairs_need_no_features_and_keep_to_their_split(world, tmp_path):
    fields = {"mining": MiningConfig(policy="existing"), "features": (str(tmp_path / "none"),)}
    train = _pairs(world, tmp_path / "p", **fields)
    assert len(train) == 16 and {pair.reference_id[:3] for pair in train} == {"lab"}
    held_out = _pairs(world, tmp_path / "q", split="val", **fields)
    assert {pair.reference_id[:3] for pair in held_out} == {"val"}


def test_labelled_pairs_are_all_single_edits_and_texts_are_judged_in_their_direction(world, tmp_path):
    root = str(world / "world")
    pairs = _pairs(world, tmp_path / "p", mining=MiningConfig(policy="existing"))
    assert single_edit_share(pair_table(pairs), root) == 1.0
    from cirray.pipelines.data.datasets import open_dataset

    texts = open_dataset(DataConfig(folder=FolderConfig(root=root))).split("train")
    rows = [
        {
            "triplet_id": t.triplet_id,
            "reference_id": t.reference_id,
            "target_id": t.target_id,
            "modification": t.modification,
        }
        for t in texts
    ]
    right = text_accuracy([triplet_table(rows[:1]), triplet_table(rows[1:])], root)
    swapped = [{**row, "reference_id": row["target_id"], "target_id": row["reference_id"]} for row in rows]
    wrong = text_accuracy([triplet_table(swapped)], root)
    assert right["exact"] == right["direction"] == right["exact_single_edits"] == 1.0
    assert wrong["exact"] < 0.3 and wrong["direction"] < 0.7
    with pytest.raises(DataError, match="knows no image 'ghost'"):
        single_edit_share(pair_table([Pair("p", "ghost", "ghost")]), root)


def _pairs(world, out, **fields):
    run_mine(run_of(world, out, **fields))
    return to_pairs(read_pairs(out))


def test_images_that_could_not_be_embedded_are_skipped_but_unknown_ones_are_an_error(world, tmp_path):
    from made_artifacts import stage_of

    from cirray.features.shards import FeatureShardWriter
    from cirray.features.store import FeatureStore

    store = FeatureStore.open(world / "features")
    ids = [image for image in store.ids if image.startswith("pool")]
    for name, rejected in (("told", [(ids[0], "truncated")]), ("untold", [])):
        stage = stage_of(tmp_path / name, "features", {})
        FeatureShardWriter(stage.work_uri).write(0, ids[1:], store.get(ids[1:]), rejected)
        extra = {"encoder_digest": "e", "transform_digest": "t", "shape": list(store.shape)}
        stage.publish({"images": len(ids) - 1}, extra=extra)
    for policy in ("neighbour_band", "uniform"):
        fields = {"mining": MiningConfig(policy=policy)}
        found = _pairs(world, tmp_path / policy, features=(str(tmp_path / "told"),), **fields)
        assert found and not any(ids[0] in (pair.reference_id, pair.target_id) for pair in found)
        with pytest.raises(DataError, match="1 of 48 images to pair have no features"):
            _pairs(world, tmp_path / f"{policy}2", features=(str(tmp_path / "untold"),), **fields)
