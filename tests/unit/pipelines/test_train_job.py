"""Recall while training, on the public benchmarks' layouts: their own figures need more than a triplet says."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.job import measures_of, recall_of

FILES = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))


@pytest.fixture(autouse=True)
def embedded(monkeypatch):
    """A features artifact that rejected nothing: the layouts' pictures are empty files, which nobody opens here."""
    monkeypatch.setattr("cirray.pipelines.data.datasets.localize", lambda uri, kind: uri)
    monkeypatch.setattr("cirray.pipelines.data.datasets.read_rejected", lambda uri: {})


class AnyImage:
    """A vector for every image id."""

    def get(self, ids):
        return np.stack([np.random.default_rng(sum(map(ord, name))).normal(size=(1, 8)) for name in ids])

    def missing(self, ids):
        return []

    def __contains__(self, name):
        return True


def run_on(name, root, **validation):
    tree = {
        "data": {"format": name, name: {"root": str(root)}}, "ray": {"enabled": False}, "features": ["somewhere"],
        "training": {"log_every": 1}, "validation": {"every": 1, **validation},
    }  # fmt: skip
    run = validate(TrainRun, tree)
    return run, read_inputs(run)


def retriever_for(inputs):
    text = {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}
    return build_dual(DualEncoderConfig(embed_dim=8, text=text), inputs.texts, 8)


@pytest.mark.parametrize("name", ["cirr", "fashioniq"])
def test_held_out_triplets_of_a_benchmark_are_measured_by_plain_recall(name, tmp_path):
    root = getattr(FILES, f"write_{name}")(tmp_path)
    run, inputs = run_on(name, root, held_out=1, keep=["held_R@50"], ks=[1, 50])
    found = recall_of(run, inputs, AnyImage(), retriever_for(inputs))
    assert set(found) == {"val_R@1", "val_R@50", "held_R@1", "held_R@50"} and found["held_R@50"] == 1
    assert len(measures_of(run, inputs, AnyImage())) == 2
    assert inputs.slice and not {row.group_id for row in inputs.slice} & {row.group_id for row in inputs.triplets}


@pytest.mark.parametrize(
    ("name", "chosen", "figures"),
    [
        ("cirr", [f"val_{n}" for n in ("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3")], {"val_Avg"}),
        ("fashioniq", ["val_Avg"], {"val_Avg R@10", "val_Avg R@50", "val_dress R@10", "val_toptee R@50"}),
    ],
)
def test_a_benchmarks_own_queries_galleries_and_figures_choose_the_epoch_as_the_papers_do(
    name, chosen, figures, tmp_path
):
    root = getattr(FILES, f"write_{name}")(tmp_path)
    run, inputs = run_on(name, root, queries="benchmark", keep=chosen)
    retriever, dataset = retriever_for(inputs), inputs.dataset
    found = recall_of(run, inputs, AnyImage(), retriever)
    assert set(found) >= {*chosen, *figures} and len(measures_of(run, inputs, AnyImage())) == 2
    official = evaluate_retriever(
        retriever, AnyImage(), dataset.queries, dataset.gallery_ids, dataset.protocol, galleries=dataset.galleries
    )
    assert found == {f"val_{figure}": value for figure, value in official.metrics.items()}
    assert set(inputs.gallery_ids) >= set(dataset.gallery_ids) > set()
    if name == "fashioniq":
        assert found["val_Avg"] == pytest.approx((found["val_Avg R@10"] + found["val_Avg R@50"]) / 2)


def test_a_gallery_picture_that_could_not_be_embedded_is_not_searched(tmp_path, monkeypatch):
    run, whole = run_on("fashioniq", FILES.write_fashioniq(tmp_path), queries="benchmark")
    monkeypatch.setattr("cirray.pipelines.data.datasets.read_rejected", lambda uri: {0: [("dress-val-2", "truncated")]})
    inputs = read_inputs(run)
    assert set(whole.gallery_ids) - set(inputs.gallery_ids) == {"dress-val-2"}
    assert len(inputs.queries) == len(whole.queries)
    assert set(recall_of(run, inputs, AnyImage(), retriever_for(inputs))) >= {"val_Avg", "val_dress R@10"}


def test_a_figure_that_the_benchmark_does_not_have_is_refused_before_the_first_step(tmp_path):
    run, inputs = run_on("fashioniq", FILES.write_fashioniq(tmp_path), queries="benchmark", keep=["val_Rs@1"])
    with pytest.raises(ConfigError, match="Unknown validation.keep 'val_Rs@1'.*Known: .*val_Avg R@10"):
        measures_of(run, inputs, AnyImage())


def test_a_split_without_published_targets_cannot_choose_weights(tmp_path):
    tree = {"data": {"format": "cirr", "cirr": {"root": str(FILES.write_cirr(tmp_path)), "split": "test1"}}}
    chosen = {"every": 10, "queries": "benchmark", "keep": ["val_R@1"]}
    run = validate(TrainRun, {**tree, "features": ["somewhere"], "validation": chosen})
    with pytest.raises(DataError, match="'12' has no target"):
        measures_of(run, read_inputs(run), AnyImage())


def test_what_the_driver_found_unusable_is_not_looked_for_again(tmp_path, monkeypatch):
    run, whole = run_on("fashioniq", FILES.write_fashioniq(tmp_path), queries="benchmark")
    monkeypatch.setattr("cirray.pipelines.data.datasets.read_rejected", lambda uri: {0: [("dress-val-2", "truncated")]})
    found = read_inputs(run)
    assert found.unusable == {"dress-val-2"} and whole.unusable == frozenset()
    monkeypatch.setattr("cirray.pipelines.training.inputs.unusable_images", lambda *given: pytest.fail("looked again"))
    again = read_inputs(run, sorted(found.unusable))
    assert (again.triplets, again.queries, again.gallery_ids) == (found.triplets, found.queries, found.gallery_ids)
