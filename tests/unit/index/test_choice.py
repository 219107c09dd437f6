"""Which index: what is measured is true, and the choice and the frontier follow from it."""

import json

import numpy as np
import pytest
from tiny_service import make

from cirray.cli.main import main
from cirray.index.choice import K, Measured, chosen, factories, frontier, measured, sampled
from cirray.index.config import FaissConfig
from cirray.index.exact import ExactIndex
from cirray.index.store import open_index

pytest.importorskip("faiss")


def gallery(count=4000, tokens=1, width=32, seed=0):
    """Groups of near-duplicates, as fp16."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count // 8, tokens, width))
    vectors = centres[np.arange(count) % len(centres)] + 0.4 * rng.normal(size=(count, tokens, width))
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float16)


def one(recall, per_second, size, factory="Flat"):
    return Measured(FaissConfig(factory=factory), recall, per_second, size, 0.0)


@pytest.fixture(scope="module")
def found():
    return measured(gallery(), 0.9, queries=128)


def test_every_kind_is_measured_with_more_effort_until_it_finds_enough(found):
    kinds = {item.settings.factory.split(",")[-1] for item in found}
    assert kinds >= {"Flat", "HNSW32", "SQ8", "PQ8x4fs"}
    assert found[0].name == "Flat" and found[0].recall == 1.0
    for factory in {item.settings.factory for item in found}:
        recalls = [item.recall for item in found if item.settings.factory == factory]
        assert all(recall < 0.9 for recall in recalls[:-1]), factory
    sizes = {item.settings.factory: item.size for item in found}
    flat = next(size for name, size in sizes.items() if name.startswith("IVF") and name.endswith(",Flat"))
    assert sizes["Flat"] >= 4000 * 32 * 4 and min(sizes.values()) < sizes["Flat"] / 4 and sizes["HNSW32"] > flat


def test_the_recall_of_a_kind_is_what_a_count_by_hand_gives(found):
    """Another way to the same figure: the searches that an opened index makes, against the twin's."""
    from cirray.index.faiss_index import FaissBackend

    tokens, ids = gallery(), [f"{row:06d}" for row in range(4000)]
    asked, own = sampled(tokens, 128, 0)
    truth = ExactIndex(ids, tokens).search(asked, K + 1)[0]
    for item in (found[0], found[-1], min(found, key=lambda item: item.recall)):
        answers = FaissBackend(item.settings).build(ids, tokens).search(asked, K + 1)[0]
        hits = total = 0
        for left, right, row in zip(answers, truth, own, strict=True):
            wanted = [name for name in right if name != f"{row:06d}"][:K]
            hits += len(set([name for name in left if name != f"{row:06d}"][:K]) & set(wanted))
            total += len(wanted)
        assert item.recall == pytest.approx(hits / total, abs=1e-9), item.name


def test_the_choice_is_the_quickest_that_finds_enough_and_of_equal_ones_the_smallest():
    exact, quick, loose = one(1.0, 100, 50), one(0.99, 400, 90), one(0.97, 900, 10)
    small = one(0.995, 390, 20)
    assert chosen([exact, quick, loose], 0.99) is quick
    assert chosen([exact, quick, loose, small], 0.99) is small
    assert chosen([exact, quick, loose], 0.5) is loose and chosen([exact, quick, loose], 1.0) is exact


def test_the_frontier_leaves_out_what_another_one_beats_in_all_three():
    exact, quick, beaten, small = one(1.0, 100, 50), one(0.99, 400, 90), one(0.98, 300, 95), one(0.9, 50, 5)
    assert frontier([beaten, small, quick, exact]) == [exact, quick, small]


@pytest.mark.parametrize(("count", "tokens", "kinds"), [(24, 1, 1), (24, 3, 2), (4000, 1, 5), (4000, 3, 10)])
def test_kinds_that_need_more_vectors_than_there_are_are_left_out(count, tokens, kinds):
    made = list(factories(count, tokens, 32))
    assert len(made) == kinds and made[0][0] == FaissConfig()
    assert all(parameters for _, parameters in made)


def test_half_of_the_queries_leave_their_own_image_out_and_half_lie_between_two():
    tokens = gallery(200)
    asked, own = sampled(tokens, 20, 3)
    assert np.allclose(np.linalg.norm(asked, axis=1), 1, atol=1e-5) and (own >= 0).sum() == 10
    nearest = ExactIndex([f"{row:03d}" for row in range(200)], tokens).search(asked, 1)
    assert [int(names[0]) for names, row in zip(nearest[0], own, strict=True) if row >= 0] == [r for r in own if r >= 0]


def test_an_index_is_built_by_measurement_and_says_what_it_measured(tmp_path):
    made = make(tmp_path, target_recall=0.99)
    rows = made.manifest.extra["measured"]
    assert sum(row["chosen"] for row in rows) == 1 and all(row["recall"] <= 1 for row in rows)
    assert (tmp_path / "index" / "choice.svg").read_text().count("<svg") == 1
    kept = json.loads((tmp_path / "index" / "meta.json").read_text())["backend"]
    assert kept["kind"] == "faiss" and open_index(made.index).search_index.search(np.ones((1, 8)), 3)


def test_a_target_beside_an_index_is_refused_in_one_sentence(capsys):
    assert main(["index", "--target-recall", "0.9", "--index", "exact", "--print-config"]) == 2
    assert "leave out `index`, or target_recall" in capsys.readouterr().err
    assert main(["index", "--target-recall", "1.5", "--print-config"]) == 2
