"""The round-trip check with a retriever whose answers are known: it goes where the text says."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_artifacts import from_triplets, stage_of

from cirray.core.errors import GenerationError, IndexMismatchError
from cirray.evaluation.round_trip import pair_scores, round_trip_ranks, worse_of_both
from cirray.features.store import FeatureStore
from cirray.pipelines.texts import check
from cirray.pipelines.texts.config import CheckRun
from cirray.triplets.schema import REJECTED_SCHEMA
from cirray.triplets.store import TripletStore, write_part
from cirray.types import Triplet

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))
SIZE = 6


class Obedient:
    """Images are corners of a cube; the text `to 3 then 1` ranks image 3 first and image 1 second."""

    temperature = 0.25

    def encode_gallery(self, patches_BPD):
        return patches_BPD[:, :1]

    def encode_reference(self, patches_BPD):
        return patches_BPD

    def tokenize(self, texts):
        return [[int(word) for word in text.split() if word.isdigit()] for text in texts]

    def compose(self, state_BPD, wishes):
        query_BD = torch.zeros(len(wishes), SIZE)
        for row, wish in enumerate(wishes):
            for place, image in enumerate(wish):
                query_BD[row, image] = 1.0 / (1 + place)
        return query_BD

    def score(self, query_BD, gallery_NQD):
        return query_BD @ gallery_NQD[:, 0].T


def pair(number, reference, target, there, back):
    """Both directions of a pair."""
    names = f"im-{reference}", f"im-{target}"
    return [
        Triplet(f"{number}a", names[0], names[1], there, back), Triplet(f"{number}b", names[1], names[0], back, there)
    ]  # fmt: skip


TRIPLETS = [
    *pair(0, 0, 1, "to 1", "to 0"),
    *pair(1, 2, 3, "to 4 then 3", "to 2"),
    *pair(2, 4, 5, "to 5", "to 0 then 1 then 4"),
]


@pytest.fixture
def features(tmp_path):
    vectors = {f"im-{n}": np.eye(SIZE, dtype=np.float16)[n : n + 1] for n in range(SIZE)}
    return TINY.write_features(tmp_path / "features", vectors)


def write_rows(place, rows):
    stage = stage_of(place, "triplets", {})
    write_part(stage.work_uri, "part-00000", from_triplets(rows), REJECTED_SCHEMA.empty_table())
    stage.publish({"triplets": len(rows)}, extra={"generator": "abc"})


@pytest.fixture
def run(tmp_path, features, monkeypatch):
    write_rows(tmp_path / "synthetic", TRIPLETS)
    stage_of(tmp_path / "base", "checkpoint", {}).publish({"steps": 1})
    tower = SimpleNamespace(digest="enc")
    monkeypatch.setattr(check, "load_models", lambda *_: (Obedient(), tower, None))
    places = {"triplets": str(tmp_path / "synthetic"), "checkpoint": str(tmp_path / "base"), "features": (features,)}
    return lambda **fields: CheckRun(**{**places, "out": str(tmp_path / "checked"), **fields})


def ids(store):
    return [row.triplet_id for row in store.read()]


def test_the_rank_counts_the_images_that_the_text_prefers(features):
    ranks = round_trip_ranks(Obedient(), FeatureStore.open(features), TRIPLETS)
    assert ranks.tolist() == [0, 0, 1, 0, 0, 2]
    assert worse_of_both(TRIPLETS, ranks).tolist() == [0, 0, 1, 1, 2, 2]
    assert worse_of_both(TRIPLETS[:1], ranks[:1]).tolist() == [0]


def test_pairs_stay_or_go_together_and_reasons_are_kept(run, tmp_path):
    manifest = check.run_check(run(top_k=2))
    store = TripletStore.open(tmp_path / "checked")
    assert ids(store) == ["0a", "0b", "1a", "1b"] and manifest.counts == {"triplets": 4, "rejected": 2}
    assert manifest.extra["generator"] == "abc"
    reasons = store.rejected().to_pylist()
    assert [row["triplet_id"] for row in reasons] == ["2a", "2b"]
    assert reasons[0]["reason"] == "round trip: its target is number 3, not among the first 2"
    assert check.run_check(run(top_k=2)) == manifest


def test_each_direction_can_be_judged_alone(run, tmp_path):
    check.run_check(run(top_k=1, both=False))
    assert ids(TripletStore.open(tmp_path / "checked")) == ["0a", "0b", "1b", "2a"]


def test_a_check_that_no_row_passes_leaves_nothing_behind(run, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "round_trip_ranks", lambda *_, **__: np.full(len(TRIPLETS), 4))
    with pytest.raises(
        GenerationError, match="passes rank; the first one: round trip: its target is number 5.*Raise top_k"
    ):
        check.run_check(run(top_k=3))
    assert not (tmp_path / "checked").exists()


def test_features_of_another_tower_are_refused(run, monkeypatch):
    monkeypatch.setattr(check, "load_models", lambda *_: (Obedient(), SimpleNamespace(digest="other"), None))
    with pytest.raises(IndexMismatchError, match="Embed the images with that tower"):
        check.run_check(run())


def test_outrank_drops_a_text_that_leads_back_to_its_own_reference(run, tmp_path):
    rows = [*pair(0, 0, 1, "to 1 then 0", "to 1 then 0")]
    scores = pair_scores(Obedient(), FeatureStore.open(run().features[0]), rows)
    assert scores.target.tolist() == [1.0, 0.5] and scores.reference.tolist() == [0.5, 1.0]
    write_rows(tmp_path / "own", rows)
    check.run_check(run(triplets=str(tmp_path / "own"), tests=("outrank",), both=False))
    store = TripletStore.open(tmp_path / "checked")
    assert ids(store) == ["0a"] and "its own reference" in store.rejected().to_pylist()[0]["reason"]


def test_direction_drops_a_text_that_tells_the_opposite_change_and_its_twin_with_it(run, tmp_path):
    rows = [*pair(0, 0, 1, "to 1", "to 0"), *pair(1, 2, 3, "to 2", "to 2")]
    write_rows(tmp_path / "own", rows)
    check.run_check(run(triplets=str(tmp_path / "own"), tests=("direction",)))
    store = TripletStore.open(tmp_path / "checked")
    assert ids(store) == ["0a", "0b"]
    assert {row["reason"].partition(":")[0] for row in store.rejected().to_pylist()} == {"direction"}


def test_the_first_test_that_fails_gives_the_reason_and_none_is_refused(run, tmp_path):
    check.run_check(run(tests=("rank", "outrank"), top_k=2))
    reasons = [row["reason"] for row in TripletStore.open(tmp_path / "checked").rejected().to_pylist()]
    assert [reason.partition(":")[0] for reason in reasons] == ["round trip", "round trip"]
    with pytest.raises(ValueError, match="needs at least one entry"):
        run(tests=())


def test_a_row_that_fails_may_stay_at_a_smaller_weight(run, tmp_path):
    manifest = check.run_check(run(top_k=1, both=False, failing="weight"))
    store = TripletStore.open(tmp_path / "checked")
    assert manifest.counts == {"triplets": 6, "rejected": 0, "lowered": 2} and len(store.rejected()) == 0
    weights = {row.triplet_id: row.weight for row in store.read()}
    assert weights == {"0a": 1, "0b": 1, "1a": 1 / 2, "1b": 1, "2a": 1, "2b": pytest.approx(1 / 3)}


def test_weights_are_the_odds_against_the_image_that_is_nearer_and_twins_share_the_worse(run, tmp_path):
    rows = [*pair(0, 0, 1, "to 1 then 0", "to 1 then 0")]
    write_rows(tmp_path / "own", [replace(rows[0], weight=3.0), rows[1]])
    check.run_check(run(triplets=str(tmp_path / "own"), tests=("outrank",), failing="weight"))
    odds = float(np.exp(-0.5 / Obedient.temperature))
    assert [row.weight for row in TripletStore.open(tmp_path / "checked").read()] == pytest.approx([3 * odds, odds])
