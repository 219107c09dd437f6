"""FAISS against the NumPy twin, to the id and to the bit, on easy and on adversarial galleries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirray.index.config import FaissConfig
from cirray.index.exact import ExactIndex
from cirray.index.faiss_index import FaissTokenIndex, build_faiss


def both(tokens_NQD, queries_BD, k, oversample=16):
    ids = [f"{row:06d}" for row in range(len(tokens_NQD))]
    config = FaissConfig(oversample=oversample)
    fast = FaissTokenIndex(ids, tokens_NQD, build_faiss(tokens_NQD, config), config)
    return fast.search(queries_BD, k), ExactIndex(ids, tokens_NQD).search(queries_BD, k)


def assert_same(tokens_NQD, queries_BD, k, oversample=16):
    (ids, scores), (true_ids, true_scores) = both(tokens_NQD, queries_BD, k, oversample)
    assert ids == true_ids
    assert scores.tobytes() == true_scores.tobytes()


def clustered(rng, count, tokens, width, spread):
    """A hard gallery: groups of images that differ by little, as many edits of one reference do."""
    centres = rng.normal(size=(max(1, count // 9), tokens, width))
    vectors = centres[np.arange(count) % len(centres)] + spread * rng.normal(size=(count, tokens, width))
    return (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float16)


@pytest.mark.parametrize("spread", [1.0, 0.05, 1e-3, 0.0])
def test_flat_and_twin_agree_to_the_id_on_2250_images_of_9_tokens(spread):
    rng = np.random.default_rng(5)
    tokens = clustered(rng, 2250, 9, 64, spread)
    queries = tokens[rng.integers(0, 2250, 12), rng.integers(0, 9, 12)].astype(np.float32)
    assert_same(tokens, queries + 0.01 * rng.normal(size=queries.shape).astype(np.float32), 50)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 60), tokens=st.integers(1, 5), width=st.sampled_from([2, 3, 8]), k=st.integers(1, 70),
    oversample=st.integers(1, 4), levels=st.integers(1, 3), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_flat_and_twin_agree_on_galleries_full_of_ties(count, tokens, width, k, oversample, levels, seed):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-levels, levels + 1, size=(count, tokens, width)).astype(np.float16)
    assert_same(vectors, rng.integers(-levels, levels + 1, size=(3, width)).astype(np.float32), k, oversample)


def test_without_the_certainty_rule_near_ties_would_be_answered_wrongly():
    rng = np.random.default_rng(5)
    query = rng.normal(size=(1, 256)).astype(np.float32)
    one_D = rng.normal(size=256).astype(np.float16)
    vectors = np.stack([rng.permutation(one_D) for _ in range(3000)])[:, None]
    constant = np.full_like(query, 1.0 / 3.0)
    ids = [f"{row:06d}" for row in range(len(vectors))]
    config = FaissConfig(oversample=1)
    careless = FaissTokenIndex(ids, vectors, build_faiss(vectors, config), config)
    careless._certain = False
    truth = ExactIndex(ids, vectors).search(constant, 10)
    assert careless.search(constant, 10)[0] != truth[0]
    assert_same(vectors, constant, 10, oversample=1)
    assert_same(vectors, query, 10, oversample=1)
