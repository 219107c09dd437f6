"""Searches among allowed rows equal a scan of those rows, whatever the index and the share of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_index import build, gallery, naive, queries

from cirray.core.errors import DataError
from cirray.index import faiss_index

SHARES = [0.001, 0.01, 0.1, 0.5, 0.9, 1.0]
EXACT = [("exact", {}), ("tokens", {}), ("pooled", {"oversample": 10_000})]
WHOLE = [
    ("tokens", {"factory": "IVF8,Flat", "search_parameters": "nprobe=8"}),
    ("pooled", {"factory": "IVF8,Flat", "search_parameters": "nprobe=8", "oversample": 10_000}),
    ("tokens", {"factory": "HNSW32", "search_parameters": "efSearch=6000"}),
    ("tokens", {"factory": "PQ4x4"}),
]


def brute(ids, tokens, query, k, mask):
    rows = np.flatnonzero(mask)
    return naive([ids[row] for row in rows], tokens[rows], query, k)[0]


@pytest.fixture
def unscanned(monkeypatch):
    """FAISS is asked even where few rows are allowed."""
    monkeypatch.setattr(faiss_index, "SCANNED_VECTORS", 0)


@pytest.mark.parametrize("scanned", [0, 20_000])
@pytest.mark.parametrize(("kind", "fields"), EXACT)
@pytest.mark.parametrize("share", SHARES)
def test_answers_equal_brute_force_among_the_allowed_rows(kind, fields, share, scanned, monkeypatch):
    monkeypatch.setattr(faiss_index, "SCANNED_VECTORS", scanned)
    ids, tokens = gallery(count=1000, tokens=2)
    tokens[100:130] = tokens[100]
    mask = np.zeros(1000, bool)
    mask[np.random.default_rng(3).permutation(1000)[: round(share * 1000)]] = True
    asked = np.concatenate([queries(2), tokens[100, :1].astype(np.float32)])
    found, scores = build(kind, ids, tokens, **fields).search(asked, 7, mask)
    for line, query in enumerate(asked):
        assert found[line] == brute(ids, tokens, query, 7, mask)
        assert (
            np.isneginf(scores[line, len(found[line]) :]).all() and np.isfinite(scores[line, : len(found[line])]).all()
        )


@pytest.mark.parametrize(("kind", "fields"), WHOLE)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_an_approximate_index_that_looks_everywhere_is_exact_too(kind, fields, share, unscanned):
    ids, tokens = gallery(count=600, tokens=2)
    mask = np.random.default_rng(4).random(600) < share
    found, _ = build(kind, ids, tokens, **fields).search(queries(3), 5, mask)
    assert found == [brute(ids, tokens, query, 5, mask) for query in queries(3)]


@pytest.mark.parametrize("factory", ["IVF16,Flat", "HNSW16", "IVF16,SQ8", "PCA8,IVF16,Flat", "IVF16,PQ4x4fs,RFlat"])
def test_a_selection_costs_an_approximate_index_no_recall_and_no_answers(factory, unscanned):
    ids, tokens = gallery(count=2000, tokens=1)
    index = build("tokens", ids, tokens, factory=factory)
    mask = np.random.default_rng(5).random(2000) < 0.05

    def recall(found, mask):
        wanted = [brute(ids, tokens, query, 10, mask) for query in queries(20)]
        return sum(len(set(a) & set(b)) for a, b in zip(found, wanted, strict=True)) / 200

    plain, _ = index.search(queries(20), 10)
    chosen, _ = index.search(queries(20), 10, mask)
    assert all(len(line) == 10 for line in chosen)
    assert recall(chosen, mask) >= recall(plain, np.ones(2000, bool)) - 0.02


@pytest.mark.parametrize("kind", ["exact", "tokens", "pooled"])
def test_nothing_allowed_is_no_answer_and_all_allowed_is_every_answer(kind, unscanned):
    ids, tokens = gallery()
    index = build(kind, ids, tokens)
    found, scores = index.search(queries(2), 5, np.zeros(60, bool))
    assert found == [(), ()] and np.isneginf(scores).all()
    plain, every = index.search(queries(2), 5), index.search(queries(2), 5, np.ones(60, bool))
    assert plain[0] == every[0] and plain[1].tobytes() == every[1].tobytes()


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["exact", "tokens", "pooled"]), k=st.integers(1, 40))
def test_each_query_keeps_to_its_own_mask(data, kind, k):
    ids, tokens = gallery(count=30, tokens=2, width=4)
    tokens[::3] = tokens[0]
    mask = st.one_of(st.none(), st.lists(st.booleans(), min_size=30, max_size=30).map(lambda rows: np.array(rows)))
    masks = data.draw(st.lists(mask, min_size=3, max_size=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faiss_index, "SCANNED_VECTORS", 0)
        found, _ = build(kind, ids, tokens, oversample=100).search(queries(3, 4), k, masks)
    for query, line, mask_N in zip(queries(3, 4), found, masks, strict=True):
        assert line == brute(ids, tokens, query, k, np.ones(30, bool) if mask_N is None else mask_N)


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        (np.ones(59, bool), r"bool\[59\]; give bool\[60\]"),
        (np.ones(60), r"float64\[60\]"),
        ([None], "1 masks of allowed rows were given for 2 queries"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_in_words(masks, sentence):
    ids, tokens = gallery()
    with pytest.raises(DataError, match=sentence):
        build("exact", ids, tokens).search(queries(2), 3, masks)
