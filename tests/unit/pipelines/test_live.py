"""Training without a features artifact: the frozen tower encodes what a batch asks for."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError
from cirray.features.store import FeatureStore
from cirray.image_text import load_models
from cirray.models.towers.places import open_tower
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.live import LiveFeatures, live_features, live_images
from cirray.pipelines.training.train import run_train

TINY = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_training.py"))


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return TINY["make"](tmp_path_factory.mktemp("live"))


def run_of(fields, out="x", **changes):
    return validate(TrainRun, {**fields, "features": [], "out": str(out), **changes})


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "history.jsonl").read_text().splitlines()]


def test_tokens_are_those_of_the_cache_up_to_fp16_and_any_order_may_be_asked_for(fields):
    live, stored = live_features(run_of(fields)), FeatureStore.open_many(fields["features"])
    assert isinstance(live, LiveFeatures) and live.shape == stored.shape
    assert live.info.encoder_digest == stored.info.encoder_digest
    ids = [*stored.ids[5:40], stored.ids[7], stored.ids[0]]
    made = live.get(ids)
    assert made.dtype == np.float16
    # One unit in the last place of fp16: a product over another batch may add up in another order.
    assert np.allclose(made.astype(np.float32), stored.get(ids).astype(np.float32), rtol=2**-10, atol=2**-14)
    assert stored.ids[3] in live and "nothing" not in live and live.missing(["nothing"]) == ["nothing"]


def test_losses_and_recall_equal_those_of_cached_features(fields, tmp_path):
    cached = run_train(validate(TrainRun, {**fields, "out": str(tmp_path / "cached")}))
    live = run_train(run_of(fields, tmp_path / "live"))
    assert losses(tmp_path / "live") == pytest.approx(losses(tmp_path / "cached"), rel=1e-3)
    assert live.metrics["val_R@10"] == pytest.approx(cached.metrics["val_R@10"], abs=0.05)
    assert {"towers", "images 0"} <= set(live.inputs) and "features 0" in cached.inputs
    assert load_models(str(tmp_path / "live"))[1].width == 16


def test_another_tower_gives_other_losses(fields, tmp_path):
    TINY["make_towers"](tmp_path / "towers", layers=2)
    run_train(run_of(fields, tmp_path / "own", training={**fields["training"], "steps": 5}))
    other = {"towers": str(tmp_path / "towers"), "training": {**fields["training"], "steps": 5}}
    run_train(run_of(fields, tmp_path / "other", **other))
    assert losses(tmp_path / "other") != pytest.approx(losses(tmp_path / "own"), rel=1e-3)


def test_images_of_further_data_sets_are_found(fields):
    run = run_of(fields, data=None, images=[fields["data"]], triplets=["x"])
    assert len(live_features(run)) == len(live_images(run)[0].ids) > 0


def test_an_image_without_a_file_or_that_cannot_be_read_is_named(fields, tmp_path):
    live = live_features(run_of(fields))
    with pytest.raises(DataError, match="'nowhere' has no file among"):
        live.get(["nowhere"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    (images,) = live_images(run_of(fields))
    spoiled = type(images)(images.ids[:1], (str(broken),), "x")
    tower = open_tower(fields["towers"])
    with pytest.raises(DataError, match="embed the images first"):
        LiveFeatures(tower, [spoiled]).get(images.ids[:1])


def test_a_run_without_features_and_without_files_is_refused(fields):
    with pytest.raises(ConfigError, match="name their files"):
        run_of(fields, data=None, triplets=["x"])


def test_one_picture_that_cannot_be_read_costs_its_rows_and_no_training(fields, tmp_path):
    whole = read_inputs(run_of(fields)).triplets
    world = tmp_path / "world"
    shutil.copytree(fields["data"]["folder"]["root"], world)
    broken, gone = whole[0].target_id, whole[-1].reference_id
    path = world / "labelled" / f"{broken}.png"
    path.write_bytes(path.read_bytes()[:120])
    (world / "labelled" / f"{gone}.png").unlink()
    (world / "labelled" / f"{gone}.png").symlink_to("nowhere")
    own, steps = {"folder": {"root": str(world)}}, {**fields["training"], "steps": 2}
    run = run_of(fields, tmp_path / "c", data=own, training=steps)
    lost = {row for row in whole if {broken, gone} & {row.reference_id, row.target_id}}
    assert set(whole) - set(read_inputs(run).triplets) == lost and len(lost) < len(whole)
    assert run_train(run).kind == "checkpoint"
