"""Recall while training, on the public benchmarks' layouts: their own figures need more than a triplet says."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.config import validate
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.pipelines.config import TrainRun
from cirray.pipelines.train_inputs import read_inputs
from cirray.pipelines.train_job import measures_of, recall_of

FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))


class AnyImage:
    """A vector for every image id."""

    def get(self, ids):
        return np.stack([np.random.default_rng(sum(map(ord, name))).normal(size=(1, 8)) for name in ids])

    def missing(self, ids):
        return []

    def __contains__(self, name):
        return True


@pytest.mark.parametrize("name", ["cirr", "fashioniq"])
def test_held_out_triplets_of_a_benchmark_are_measured_by_plain_recall(name, tmp_path):
    root = getattr(FILES, f"write_{name}")(tmp_path)
    tree = {
        "data": {"format": name, name: {"root": str(root)}}, "ray": {"enabled": False},
        "training": {"log_every": 1}, "validation": {"every": 1, "held_out": 1, "keep": ["held_R@50"], "ks": [1, 50]},
    }  # fmt: skip
    run = validate(TrainRun, tree)
    inputs = read_inputs(run)
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    retriever = build_dual(DualEncoderConfig(embed_dim=8, text=text), inputs.texts, 8)
    found = recall_of(run, inputs, AnyImage(), retriever)
    assert set(found) == {"val_R@1", "val_R@50", "held_R@1", "held_R@50"} and found["held_R@50"] == 1
    assert len(measures_of(run, inputs, AnyImage())) == 2
    assert inputs.slice and not {row.group_id for row in inputs.slice} & {row.group_id for row in inputs.triplets}
