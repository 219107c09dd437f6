"""Every supervised baseline on a CPU: a config that trains, is evaluated, and is exported to a folder of its own."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import cirray
from cirray.core.config import validate
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.evaluation.evaluate import run_evaluate
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train
from cirray.pipelines.weights.config import ExportRun
from cirray.pipelines.weights.export import run_export

TINY = runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_training.py"))
TEXT = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
SIZES = {"qformer": {"width": 16, "heads": 2, "queries": 2, "intermediate": 32}, "embed_dim": 8}
QFORMER = {"encoder": {"settings": SIZES}}


def dual(fusion, **fields):
    own = {"fusion": fusion, "text": TEXT, "embed_dim": 8, "image_projection": True, **fields}
    return {"encoder": {"kind": "dual", "settings": own}}


BASELINES = {
    "SPRC": {**QFORMER, "training": {"objective": "sprc"}},
    "CLIP4CIR sum": dual("sum"),
    "CLIP4CIR Combiner, encoders fixed": dual("combiner", train_text=False),
    "TIRG": dual("tirg"),
    "image only": {"encoder": {"settings": {**SIZES, "fusion": "image_only"}}},
    "text only": {"encoder": {"settings": {**SIZES, "fusion": "text_only"}}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("baselines")
    world = {"labelled_families": 12, "heldout_families": 3, "pool_families": 0, "gallery_references": 3}
    run_world(validate(WorldRun, {"shapes": world, "out": str(root / "world")}))
    TINY["make_towers"](root / "towers")
    data = {"folder": {"root": str(root / "world")}}
    embed = {"data": data, "tower": str(root / "towers"), "out": str(root / "features"), "ray": {"enabled": False}}
    run_embed(validate(EmbedRun, embed))
    return root


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_trains_and_is_evaluated_and_exported(root, name, tmp_path):
    fields = BASELINES[name]
    places = {"data": {"folder": {"root": str(root / "world")}}, "features": [str(root / "features")]}
    training = {"steps": 3, "batch": 8, "log_every": 1, "negatives": "targets", **fields.get("training", {})}
    tree = {**places, "towers": str(root / "towers"), "ray": {"enabled": False}, **fields, "training": training}
    out = str(tmp_path / "checkpoint")
    assert run_train(validate(TrainRun, {**tree, "out": out})).metrics["loss"] > 0
    report = {**places, "checkpoint": out, "html": False, "out": str(tmp_path / "report")}
    assert 0 <= run_evaluate(validate(EvaluateRun, report)).metrics["R@10"] <= 1
    run_export(ExportRun(model=out, out=str(tmp_path / "folder")))
    pictures = sorted((root / "world" / "gallery").glob("*.png"))[:2]
    exported, trained = (cirray.load(place) for place in (str(tmp_path / "folder"), out))
    found, wanted = (model.queries(pictures, ["make it red", "remove it"]) for model in (exported, trained))
    assert np.array_equal(found, wanted) and not np.allclose(found[0], found[1])
