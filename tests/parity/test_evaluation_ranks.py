"""The chunked evaluation against a naive float64 twin that sorts whole rows, to the hit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirray.data.benchmark import Protocol
from cirray.evaluation import evaluate as module
from cirray.evaluation.evaluate import evaluate_retriever, score_rows
from cirray.evaluation.verdicts import row_verdict
from cirray.models.scoring import score
from cirray.types import Query


class Table:
    """Patch tokens by id."""

    def __init__(self, ids, patches):
        self.rows = dict(zip(ids, patches, strict=True))

    def get(self, ids):
        return np.stack([self.rows[name] for name in ids]).astype(np.float16)


class Adder:
    """query = mean patch + a vector named by the text; scores by the package's scorer."""

    def __init__(self, words):
        self.words = words

    def tokenize(self, texts):
        return torch.stack([torch.as_tensor(self.words[text], dtype=torch.float32) for text in texts])

    def encode_reference(self, patches_BPD):
        return patches_BPD.sum(dim=1)

    def compose(self, state, text):
        return state + text

    def encode_gallery(self, patches_BPD):
        return patches_BPD

    def score(self, query_BD, gallery_NQD):
        return score(query_BD, gallery_NQD)


def naive_rank(scores_N, targets, removed):
    """Walk down the sorted row; among equals the non-targets come first. Position of the first target, in float64."""
    order = sorted(range(len(scores_N)), key=lambda at: (-np.float64(scores_N[at]), at in targets))
    order = [at for at in order if at != removed]
    places = [place for place, at in enumerate(order) if at in targets]
    return places[0] if places else None


def live_rank(scores_N, targets, removed):
    """The package's rank of the best target."""
    names = [str(at) for at in range(len(scores_N))]
    query = Query(
        "q", "none" if removed is None else names[removed], "text", tuple(names[at] for at in sorted(targets))
    )
    columns = {name: at for at, name in enumerate(names)}
    verdict = row_verdict(query, scores_N, columns, removed, "keep" if removed is None else "remove")
    assert verdict.rank == min(verdict.places)
    return verdict.rank


def naive_evaluation(table, words, queries, gallery, remove):
    found = []
    for query in queries:
        query_D = table.rows[query.reference_id].astype(np.float64).sum(axis=0) + words[query.modification]
        scores_N = np.array([(table.rows[name].astype(np.float64) @ query_D).max() for name in gallery])
        targets = {gallery.index(name) for name in query.target_ids}
        removed = gallery.index(query.reference_id) if remove else None
        found.append(naive_rank(scores_N, targets, removed))
    return found


def small_world(seed, images=40, count=60, values=3):
    """Integer features from a tiny range: exact in every precision, and full of ties."""
    rng = np.random.default_rng(seed)
    ids = [f"im-{n:03d}" for n in rng.permutation(images)]
    table = Table(ids, rng.integers(-values, values + 1, (images, 2, 3)))
    words = {f"w{n}": rng.integers(-values, values + 1, 3).astype(np.float64) for n in range(5)}
    queries = []
    for n in range(count):
        picked = rng.choice(images, 1 + int(rng.integers(1, 4)), replace=False)
        names = tuple(ids[at] for at in picked)
        queries.append(Query(f"q{n}", names[0], f"w{n % 5}", names[1:], edit=f"e{n % 3}"))
    return table, words, queries, ids


@pytest.mark.parametrize("rule", ["remove", "keep"])
@pytest.mark.parametrize("seed", range(4))
def test_the_chunked_evaluation_equals_the_naive_twin_to_the_rank(rule, seed, monkeypatch):
    table, words, queries, gallery = small_world(seed)
    monkeypatch.setattr(module, "_SCORE_BYTES", 4 * 40 * 7)
    protocol = Protocol("toy", reference_rule=rule, ks=(1, 2, 5))
    result = evaluate_retriever(Adder(words), table, queries, gallery, protocol, batch=11)
    expected = naive_evaluation(table, words, queries, gallery, rule == "remove")
    assert result.ranks.tolist() == expected
    assert result.hit_counts == {f"R@{k}": sum(rank < k for rank in expected) for k in (1, 2, 5)}


def test_ties_do_occur_in_that_test_and_an_optimistic_count_differs():
    """Negative control: on the same data the tie rule matters."""
    table, words, queries, gallery = small_world(0)
    optimistic = []
    for query in queries:
        query_D = table.rows[query.reference_id].sum(axis=0) + words[query.modification]
        scores = {name: (table.rows[name] @ query_D).max() for name in gallery if name != query.reference_id}
        optimistic.append(sum(value > max(scores[name] for name in query.target_ids) for value in scores.values()))
    assert optimistic != naive_evaluation(table, words, queries, gallery, True)


def test_the_reference_rule_matters_on_that_data():
    table, words, queries, gallery = small_world(1)
    assert naive_evaluation(table, words, queries, gallery, True) != naive_evaluation(
        table, words, queries, gallery, False
    )


def test_chunk_sizes_change_nothing():
    table, words, queries, gallery = small_world(2)
    runs = [
        evaluate_retriever(Adder(words), table, queries, gallery, Protocol("toy"), batch=batch) for batch in (1, 7, 999)
    ]
    assert all(run.ranks.tolist() == runs[0].ranks.tolist() and run.rankings == runs[0].rankings for run in runs)


def test_gallery_chunks_give_the_row_that_one_block_gives():
    gallery_NQD, query_BD = torch.randn(50, 3, 8), torch.randn(4, 8)
    whole = score(query_BD, gallery_NQD).numpy()
    chunked = score_rows(SimpleNamespace(score=score), query_BD, gallery_NQD, budget=4 * 3 * 7)
    assert np.allclose(whole, chunked, atol=1e-6) and chunked.dtype == np.float32


def test_permuting_the_gallery_changes_nothing():
    table, words, queries, gallery = small_world(3)
    first = evaluate_retriever(Adder(words), table, queries, gallery, Protocol("toy"))
    second = evaluate_retriever(Adder(words), table, queries, gallery[::-1], Protocol("toy"))
    assert first.ranks.tolist() == second.ranks.tolist() and first.rankings == second.rankings


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_ranks_equal_the_naive_twin_on_any_scores(data):
    count = data.draw(st.integers(2, 12))
    score_values = st.one_of(st.sampled_from([0.0, 0.5, 1.0, -1.0, float("-inf")]), st.floats(-1, 1, width=32))
    scores_N = np.array(data.draw(st.lists(score_values, min_size=count, max_size=count)), dtype=np.float32)
    targets = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
    removed = data.draw(st.one_of(st.none(), st.integers(0, count - 1)))
    found = live_rank(scores_N, targets, removed)
    expected = naive_rank(scores_N, targets - {removed}, removed)
    assert found == (np.iinfo(np.int64).max if expected is None else expected)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_monotone_rescaling_of_scores_changes_no_rank(seed, scale, shift):
    scores_BN = np.random.default_rng(seed).integers(-4, 5, (3, 15)).astype(np.float64)
    for scores_N, targets, removed in zip(scores_BN, ({0, 3}, {4}, {14}), (1, None, 2), strict=True):
        assert live_rank(scores_N, targets, removed) == live_rank(scores_N * scale + shift, targets, removed)
