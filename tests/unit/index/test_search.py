from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from small_index import build, gallery, naive, queries

from cirray.core.errors import ConfigError, DataError
from cirray.index.config import FaissConfig
from cirray.index.exact import ExactIndex
from cirray.index.faiss_index import FaissTokenIndex, _Limit, build_faiss, limit_faiss_threads


@pytest.mark.parametrize("kind", ["exact", "tokens", "pooled"])
def test_every_index_agrees_with_the_definition(kind):
    ids, tokens = gallery()
    found, scores = build(kind, ids, tokens).search(queries(), 9)
    for line, query in enumerate(queries()):
        wanted, values = naive(ids, tokens, query, 9)
        assert found[line] == wanted
        assert scores[line].tolist() == pytest.approx(values, rel=1e-6)


def test_an_index_over_mean_vectors_without_reranking_would_not_agree():
    ids, tokens = gallery()
    pooled_only = ExactIndex(ids, tokens.astype(np.float32).mean(axis=1, keepdims=True))
    assert pooled_only.search(queries(), 9)[0] != ExactIndex(ids, tokens).search(queries(), 9)[0]


@pytest.mark.parametrize("kind", ["exact", "tokens", "pooled"])
def test_equal_scores_are_ordered_by_id(kind):
    ids, tokens = gallery(count=12)
    tokens[:] = tokens[0]
    found, scores = build(kind, ids, tokens).search(queries(2), 5)
    assert found == [tuple(ids[:5])] * 2
    assert len(set(scores[0].tolist())) == 1


def test_a_flat_index_asks_again_until_the_answer_is_certain():
    ids, tokens = gallery(count=400, tokens=8)
    tokens[:20] = tokens[0]
    calls = []

    class Counting:
        def __init__(self, inner):
            self.inner, self.ntotal = inner, inner.ntotal

        def search(self, vectors, hits):
            calls.append(hits)
            return self.inner.search(vectors, hits)

    config = FaissConfig(oversample=1)
    index = FaissTokenIndex(ids, tokens, Counting(build_faiss(tokens, config)), config)
    query = tokens[0, :1].astype(np.float32)
    assert index.search(query, 10)[0] == ExactIndex(ids, tokens).search(query, 10)[0]
    assert len(calls) > 1 and calls[1] > calls[0]


@pytest.fixture
def four_threads(monkeypatch):
    """OpenMP would start four, whatever this machine has."""
    monkeypatch.setattr(_Limit, "threads", None)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(4)
    yield
    faiss.omp_set_num_threads(before)


def test_a_search_starts_no_thread_without_a_query_and_no_more_than_its_process_may(four_threads):
    """FAISS gives a query to one thread, and waits for the others, which may have to wait for a core."""
    ids, tokens = gallery(count=40)
    inner, used = build_faiss(tokens, FaissConfig()), []

    class Asking:
        ntotal = inner.ntotal

        def search(self, vectors, hits):
            used.append((len(vectors), faiss.omp_get_max_threads()))
            return inner.search(vectors, hits)

    index = FaissTokenIndex(ids, tokens, Asking(), FaissConfig())
    for count in (1, 3, 9):
        index.search(queries(count), 2)
    assert dict(used) == {1: 1, 3: 3, 9: 4} and faiss.omp_get_max_threads() == 4
    used.clear()
    limit_faiss_threads(2)
    with ThreadPoolExecutor(1) as pool:  # OpenMP has a number for each thread, and this one was told nothing
        pool.submit(index.search, queries(9), 2).result()
    assert dict(used) == {9: 2}


def test_nothing_is_scanned_when_the_index_was_certain(monkeypatch):
    ids, tokens = gallery(count=400)
    index = build("tokens", ids, tokens)
    monkeypatch.setattr("cirray.index.faiss_index.scan", None)
    assert index.search(queries(3), 5)[0]
    with pytest.raises(TypeError):
        index.search(queries(3), 200)


@pytest.mark.parametrize("kind", ["exact", "tokens", "pooled"])
def test_asking_for_more_than_there_is_gives_everything(kind):
    ids, tokens = gallery(count=6)
    found, scores = build(kind, ids, tokens).search(queries(3), 50)
    assert scores.shape == (3, 6)
    assert all(sorted(line) == ids for line in found)


@pytest.mark.parametrize("kind", ["exact", "tokens"])
def test_one_query_alone_scores_as_in_a_batch(kind):
    ids, tokens = gallery(count=300)
    index = build(kind, ids, tokens)
    together = index.search(queries(8), 20)
    for line, query in enumerate(queries(8)):
        alone = index.search(query[None], 20)
        assert alone[0][0] == together[0][line]
        assert alone[1][0].tobytes() == together[1][line].tobytes()


def test_no_query_gives_no_answer():
    ids, tokens = gallery()
    found, scores = build("tokens", ids, tokens).search(np.empty((0, 16), np.float32), 4)
    assert found == [] and scores.shape == (0, 4)


@pytest.mark.parametrize("kind", ["exact", "tokens", "pooled"])
@pytest.mark.parametrize(
    ("bad", "k", "sentence"),
    [
        (np.full((2, 16), np.nan), 3, "2 of 2 query vectors"),
        (np.ones((1, 15)), 3, r"\[B, 16\]"),
        (np.ones((1, 16)), 0, "k is 0"),
    ],
)
def test_bad_queries_are_refused_in_words(kind, bad, k, sentence):
    ids, tokens = gallery(count=8)
    with pytest.raises(DataError, match=sentence):
        build(kind, ids, tokens).search(bad, k)


def test_an_inverted_file_index_finds_nearly_everything_and_scores_exactly():
    ids, tokens = gallery(count=800, tokens=3)
    index = build("tokens", ids, tokens, factory="IVF16,Flat", search_parameters="nprobe=12")
    found, scores = index.search(queries(), 10)
    truth, true_scores = ExactIndex(ids, tokens).search(queries(), 10)
    overlap = sum(len(set(a) & set(b)) for a, b in zip(found, truth, strict=True)) / 70
    assert overlap > 0.9
    for line, true_line, names, true_names in zip(scores, true_scores, found, truth, strict=True):
        known = dict(zip(true_names, true_line.tolist(), strict=True))
        for name, value in zip(names, line.tolist(), strict=True):
            assert known.get(name, value) == value
            assert name in known or value <= min(known.values())


def test_an_exhausted_approximate_index_may_answer_fewer():
    ids, tokens = gallery(count=400, tokens=2)
    index = build("tokens", ids, tokens, factory="IVF32,Flat", oversample=1)
    found, scores = index.search(queries(1), 60)
    assert 0 < len(found[0]) <= 60
    assert np.isneginf(scores[0, len(found[0]) :]).all()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"factory": "Flatt"}, "'Flatt' is not a FAISS factory string"),
        ({"factory": "IVF5000,Flat"}, "cannot be trained on 300 vectors"),
    ],
)
def test_a_factory_that_faiss_refuses_is_named(fields, sentence):
    _, tokens = gallery()
    with pytest.raises(ConfigError, match=sentence):
        build_faiss(tokens, FaissConfig(**fields))


def test_search_parameters_that_do_not_fit_are_named():
    _, tokens = gallery()
    with pytest.raises(ConfigError, match="nprobe=4"):
        build_faiss(tokens, FaissConfig(search_parameters="nprobe=4"))
