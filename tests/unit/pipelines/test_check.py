"""The round-trip check with a retriever whose answers are known: it goes where the text says."""

import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from made_artifacts import from_triplets, stage_of

from cirray.core.errors import DataError, GenerationError, IndexMismatchError
from cirray.data.benchmark import Protocol
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.evaluation.round_trip import pair_margins, twins
from cirray.features.store import FeatureStore
from cirray.pipelines.evaluation import gallery
from cirray.pipelines.texts import check, checking
from cirray.pipelines.texts.config import CheckRun
from cirray.triplets.schema import REJECTED_SCHEMA
from cirray.triplets.store import TripletStore, write_part
from cirray.types import Query, Triplet

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
    monkeypatch.setattr(gallery, "load_models", lambda *_: (Obedient(), tower, None))
    places = {"triplets": str(tmp_path / "synthetic"), "checkpoint": str(tmp_path / "base"), "features": (features,)}
    return lambda **fields: CheckRun(**{**places, "out": str(tmp_path / "checked"), **fields})


def ids(store):
    return [row.triplet_id for row in store.read()]


class Kept(check.CheckTexts):
    """Says what it found of each part, and stops at one as a killed process does."""

    found, stop = {}, None

    def __call__(self, columns):
        number = int(columns["part"][0])
        if number == self.stop:
            raise KeyboardInterrupt
        done = super().__call__(columns)
        path = Path(self._work_uri) / checking.VERDICTS / f"part-{number:05d}.parquet"
        self.found[number] = pq.read_table(path).column("rank").to_pylist()
        return done


@pytest.fixture
def kept(monkeypatch):
    monkeypatch.setattr(Kept, "found", {})
    monkeypatch.setattr(check, "CheckTexts", Kept)
    return Kept


def test_the_rank_counts_the_images_that_the_text_prefers_as_an_evaluation_does(run, features, kept):
    queries = [Query(row.triplet_id, row.reference_id, row.modification, (row.target_id,)) for row in TRIPLETS]
    images, rule = [f"im-{n}" for n in range(SIZE)], Protocol("round trip", split="train", ks=(1,))
    result = evaluate_retriever(Obedient(), FeatureStore.open(features), queries, images, rule)
    check.run_check(run(part_rows=4))
    assert kept.found == {0: [0, 0, 1, 0], 1: [0, 2]} and result.ranks.tolist() == [0, 0, 1, 0, 0, 2]


def test_twins_have_their_images_swapped_and_the_last_counts():
    ends = np.array([[0, 1], [1, 0], [2, 3], [3, 2], [3, 2], [4, 5]], np.int32).T
    assert twins(*ends).tolist() == [1, 0, 4, 2, 2, 5]
    assert twins(*np.empty((2, 0), np.int32)).tolist() == []


def test_a_check_that_was_killed_goes_on_with_the_parts_that_are_left(run, tmp_path, kept, monkeypatch):
    whole = check.run_check(run(part_rows=2, top_k=2, out=str(tmp_path / "whole")))
    kept.found.clear()
    monkeypatch.setattr(kept, "stop", 2)
    with pytest.raises(KeyboardInterrupt):
        check.run_check(run(part_rows=2, top_k=2))
    monkeypatch.setattr(kept, "stop", None)
    assert list(kept.found) == [0, 1] and not (tmp_path / "checked").exists()
    assert check.run_check(run(part_rows=2, top_k=2)).digest == whole.digest
    assert list(kept.found) == [0, 1, 2] and {path.name for path in (tmp_path / "checked").iterdir()} >= {"data"}
    assert not {"gallery", "verdicts"} & {path.name for path in (tmp_path / "checked").iterdir()}


def test_an_id_that_stands_twice_is_refused(run, tmp_path):
    write_rows(tmp_path / "twice", [TRIPLETS[0], *TRIPLETS[:2]])
    with pytest.raises(DataError, match="'0a' appears twice in .*; every row must be there once"):
        check.run_check(run(triplets=str(tmp_path / "twice")))


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
    monkeypatch.setattr(checking, "round_trip_ranks", lambda *_, **__: np.full(len(TRIPLETS), 4))
    with pytest.raises(
        GenerationError, match="passes rank; the first one: round trip: its target is number 5.*Raise top_k"
    ):
        check.run_check(run(top_k=3))
    assert not (tmp_path / "checked").exists()


def test_features_of_another_tower_are_refused(run, monkeypatch):
    monkeypatch.setattr(gallery, "load_models", lambda *_: (Obedient(), SimpleNamespace(digest="other"), None))
    with pytest.raises(IndexMismatchError, match="Embed the images with that tower"):
        check.run_check(run())


def test_outrank_drops_a_text_that_leads_back_to_its_own_reference(run, tmp_path):
    rows = [*pair(0, 0, 1, "to 1 then 0", "to 1 then 0")]
    columns = zip(*((row.reference_id, row.target_id, row.modification) for row in rows), strict=True)
    outrank, direction = pair_margins(Obedient(), FeatureStore.open(run().features[0]), *columns, batch=1)
    assert outrank.tolist() == [0.5, -0.5] and direction.tolist() == [0.5, -0.5]
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
