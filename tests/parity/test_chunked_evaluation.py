"""Evaluation of saved vectors in blocks and shards against whole rows of float64 scores, to the integer."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cirray.core.errors import ConfigError, DataError
from cirray.data.benchmark import Protocol
from cirray.evaluation.chunked import (
    Question,
    Settings,
    Shard,
    merge,
    merge_probes,
    probe_scores,
    scan,
    split_rows,
)
from cirray.evaluation.plan import make_plan
from cirray.evaluation.vectors import rank_vectors
from cirray.evaluation.verdicts import row_verdict
from cirray.features.vector_files import VectorFile
from cirray.types import Query

PROTOCOL = Protocol("toy", metrics=("recall", "recall_subset", "soft_recall", "map", "target_recall"), ks=(1, 5, 10))
IDS = [f"im-{n:03d}" for n in range(90)]


def features(kind, rng, count, tokens, width=6):
    shape = (count, width) if tokens == 1 else (count, tokens, width)
    if kind == "tied":
        return rng.integers(-1, 2, shape).astype(np.float16)
    array = rng.standard_normal(shape).astype(np.float16)
    if kind == "duplicate":
        array[rng.integers(0, count, count // 2)] = array[rng.integers(0, count, count // 2)]
    return np.zeros_like(array) if kind == "constant" else array


def world(kind, tokens, seed=0, queries=25):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(IDS))
    gallery = features(kind, rng, len(IDS), tokens)
    asked = []
    for at in range(queries):
        picked = [IDS[n] for n in rng.choice(len(IDS), 12, replace=False)]
        asked.append(
            Query(
                f"q{at}", picked[0], "t", tuple(picked[1 : 2 + at % 4]), subset=tuple(picked[:6]),
                soft=((picked[1], 1.0), (picked[7], 0.5), (picked[8], -1.0)),
            )
        )  # fmt: skip
    vectors = features("tied" if kind == "tied" else "random", rng, queries, 1).astype(np.float32)
    return asked, vectors, [IDS[n] for n in order], gallery


def naive_scores(query_D, gallery):
    tokens = gallery[:, None] if gallery.ndim == 2 else gallery
    return np.array([(tokens[n].astype(np.float64) @ query_D.astype(np.float64)).max() for n in range(len(tokens))])


def naive(plan, vectors, ids, gallery, top_k):
    """Verdicts and lists from whole rows."""
    by_id = {name: row for row, name in enumerate(ids)}
    verdicts, lists = [], []
    for query, query_D in zip(plan.queries, vectors, strict=True):
        own, removed = plan.gallery(query), plan.removed(query)
        row = naive_scores(query_D, gallery[[by_id[name] for name in own.ids]]).astype(np.float32)
        verdicts.append(row_verdict(query, row, own.columns, removed, plan.protocol.reference_rule, own.copies))
        order = sorted((at for at in range(len(row)) if at != removed), key=lambda at: (-row[at], at))
        lists.append(tuple(own.ids[at] for at in order[:top_k]))
    return verdicts, lists


@pytest.fixture
def saved(tmp_path):
    def save(name, ids, vectors):
        np.save(tmp_path / f"{name}.npy", vectors)
        (tmp_path / f"{name}.ids.json").write_text(json.dumps(list(ids)))
        return VectorFile(str(tmp_path / f"{name}.npy"), tuple(ids), np.load(tmp_path / f"{name}.npy", mmap_mode="r"))

    return save


@pytest.mark.parametrize("rule", ["remove", "keep"])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("kind", ["random", "tied", "duplicate", "constant"])
def test_blocks_and_shards_give_the_integers_of_whole_rows(kind, tokens, rule, saved):
    queries, vectors, ids, gallery = world(kind, tokens)
    plan = make_plan(queries, ids, dataclasses.replace(PROTOCOL, reference_rule=rule))
    verdicts, lists = naive(plan, vectors, ids, gallery, 12)
    asked = saved("queries", [query.query_id for query in queries], vectors)
    whole = [saved("whole", ids, gallery)]
    halves = [saved("one", ids[:31], gallery[:31]), saved("two", ids[31:], gallery[31:])]
    for files, parts, budget in ((whole, 1, 2**28), (whole, 3, 30_000), (halves, 2, 9_000), (whole, 90, 1)):
        found = rank_vectors(plan, asked, files, Settings(normalize=False, budget=budget), top_k=12, parts=parts)
        assert list(found.verdicts) == verdicts
        assert [ranking.ids for ranking in found.rankings] == lists


def test_counting_strictly_better_images_would_differ_there(saved):
    """Negative control: the data has ties that matter."""
    queries, vectors, ids, gallery = world("tied", 1)
    plan = make_plan(queries, ids, PROTOCOL)
    verdicts, _ = naive(plan, vectors, ids, gallery, 12)
    optimistic = []
    for query, query_D in zip(queries, vectors, strict=True):
        score = dict(zip(ids, naive_scores(query_D, gallery), strict=True))
        best = max(score[name] for name in query.target_ids)
        optimistic.append(sum(value > best for name, value in score.items() if name != query.reference_id))
    assert optimistic != [verdict.rank for verdict in verdicts]


def test_named_galleries_with_a_doubled_image_are_ranked_apart(saved):
    queries, vectors, ids, gallery = world("random", 1)
    galleries = {"a": [*IDS[:50], IDS[3]], "b": IDS[40:]}
    named = []
    for at, query in enumerate(queries):
        name = "ab"[at % 2]
        own = galleries[name]
        named.append(
            dataclasses.replace(query, gallery=name, reference_id=own[0], target_ids=(own[3],), subset=(), soft=())
        )
    plan = make_plan(named, (), dataclasses.replace(PROTOCOL, metrics=("category_recall",)), galleries)
    verdicts, lists = naive(plan, vectors, ids, gallery, 7)
    asked = saved("queries", [query.query_id for query in queries], vectors)
    found = rank_vectors(
        plan, asked, [saved("whole", ids, gallery)], Settings(normalize=False, budget=5000), top_k=7, parts=2
    )
    assert list(found.verdicts) == verdicts and [ranking.ids for ranking in found.rankings] == lists


def test_a_gallery_without_targets_can_still_be_ranked(saved):
    queries, vectors, ids, gallery = world("random", 1)
    blind = [dataclasses.replace(query, target_ids=(), soft=()) for query in queries]
    plan = make_plan(blind, ids, PROTOCOL, scored=False)
    asked = saved("queries", [query.query_id for query in queries], vectors)
    found = rank_vectors(plan, asked, [saved("whole", ids, gallery)], top_k=5, judge=False)
    assert found.verdicts == () and all(len(ranking.ids) == 5 for ranking in found.rankings)
    assert all(len(ranking.ids) == 5 for ranking in found.subset_rankings)


def question_of(seed, tokens=1, top_k=5):
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (40, 3) if tokens == 1 else (40, tokens, 3)).astype(np.float16)
    probe_query = np.sort(rng.integers(0, 4, 9))
    return Question(
        rng.integers(-2, 3, (4, 3)).astype(np.float32), tuple("abcd"), probe_query, rng.integers(0, 40, 9),
        np.array([5, -1, 39, 0]), top_k,
    ), vectors  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 39), max_size=6, unique=True), st.randoms())
def test_partial_results_merge_to_the_whole_whatever_the_cuts_and_their_order(seed, cuts, random):
    question, vectors = question_of(seed)
    ends = [0, *sorted(cuts), 40]
    shards = [Shard(vectors[a:b], first=a) for a, b in zip(ends, ends[1:], strict=False)]
    random.shuffle(shards)
    plain = Settings(normalize=False, budget=700)
    scores = merge_probes(question, [probe_scores(question, shard, plain) for shard in shards])
    parts = [scan(question, shard, scores, plain) for shard in shards]
    whole = scan(question, Shard(vectors), scores, Settings(normalize=False))
    merged = merge(parts)
    nested = merge([merge(parts[: len(parts) // 2 + 1]), *parts[len(parts) // 2 + 1 :]])
    for one in (merged, nested):
        assert np.array_equal(one.scores, whole.scores) and np.array_equal(one.rows, whole.rows)
        assert np.array_equal(one.above, whole.above)


def test_single_precision_sums_agree_where_no_scores_are_close():
    question, vectors = question_of(1, tokens=2)
    single, double = Settings(normalize=False, sums="float32"), Settings(normalize=False)
    scores = merge_probes(question, [probe_scores(question, Shard(vectors), single)])
    one, other = (scan(question, Shard(vectors), scores, how) for how in (single, double))
    assert np.array_equal(one.above, other.above) and np.array_equal(one.rows, other.rows)


def test_a_list_shorter_than_top_k_is_filled_up_with_nothing():
    question, vectors = question_of(2, top_k=60)
    scores = merge_probes(question, [probe_scores(question, Shard(vectors), Settings(normalize=False))])
    found = scan(question, Shard(vectors), scores, Settings(normalize=False, budget=1))
    filled = (found.rows < 40).sum(axis=1)
    assert filled.tolist() == [39, 40, 39, 39]


def test_vectors_that_are_not_numbers_are_refused_by_the_image_or_query_that_holds_them():
    question, vectors = question_of(3)
    broken = vectors.copy()
    broken[17, 1] = np.nan
    named = dataclasses.replace(question, image_ids=tuple(IDS[:40]), probe_row=np.full(9, 3))
    scores = merge_probes(named, [probe_scores(named, Shard(broken), Settings(normalize=False))])
    with pytest.raises(DataError, match="gallery image 'im-017' holds NaN"):
        scan(named, Shard(broken), scores, Settings(normalize=False))
    target = dataclasses.replace(named, probe_row=np.full(9, 17))
    with pytest.raises(DataError, match="gallery image 'im-017' holds NaN"):
        merge_probes(target, [probe_scores(target, Shard(broken), Settings(normalize=False))])
    bad = dataclasses.replace(question, query_BD=np.where(np.arange(4)[:, None] == 2, np.nan, question.query_BD))
    with pytest.raises(DataError, match="vector of query 'c' holds NaN"):
        probe_scores(bad, Shard(vectors), Settings(normalize=False))


def test_a_target_in_no_shard_other_widths_and_no_shards_are_refused():
    question, vectors = question_of(4)
    with pytest.raises(DataError, match="lie in no shard"):
        merge_probes(question, [probe_scores(question, Shard(vectors[:1]), Settings(normalize=False))])
    with pytest.raises(DataError, match=r"\(40, 2\) do not fit queries of width 3"):
        probe_scores(question, Shard(vectors[:, :2]), Settings(normalize=False))
    with pytest.raises(ConfigError, match="no partial results"):
        merge([])


def test_rows_are_split_without_gap_or_overlap():
    assert split_rows(10, 3) == [(0, 3), (3, 6), (6, 10)]
    assert split_rows(2, 5)[-1][1] == 2 and sum(stop - start for start, stop in split_rows(2, 5)) == 2


def test_files_that_miss_a_query_or_an_image_or_hold_one_twice_are_refused(saved):
    queries, vectors, ids, gallery = world("random", 1)
    plan = make_plan(queries, ids, PROTOCOL)
    names = [query.query_id for query in queries]
    asked, whole = saved("queries", names, vectors), saved("whole", ids, gallery)
    with pytest.raises(DataError, match="1 of 25 queries have no vector .* 'q24'"):
        rank_vectors(plan, saved("few", names[:24], vectors[:24]), [whole])
    with pytest.raises(DataError, match="60 of 90 gallery images have no vector"):
        rank_vectors(plan, asked, [saved("part", ids[:30], gallery[:30])])
    with pytest.raises(DataError, match=f"'{ids[0]}' is in "):
        rank_vectors(plan, asked, [whole, saved("again", ids[:1], gallery[:1])])


def test_unit_length_on_request_makes_scores_cosines(saved):
    queries, vectors, ids, gallery = world("random", 1)
    plan = make_plan(queries, ids, PROTOCOL)
    asked = saved("queries", [query.query_id for query in queries], 7 * vectors)
    found = rank_vectors(plan, asked, [saved("whole", ids, gallery)], Settings())
    scores = np.array([ranking.scores for ranking in found.rankings])
    assert scores.max() <= 1 + 1e-6 and scores.max() > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_counts_what_the_cpu_counts(saved):
    queries, vectors, ids, gallery = world("duplicate", 4)
    plan = make_plan(queries, ids, PROTOCOL)
    asked, whole = saved("queries", [query.query_id for query in queries], vectors), [saved("whole", ids, gallery)]
    cpu, gpu = (
        rank_vectors(plan, asked, whole, Settings(normalize=False, device=device, budget=9000))
        for device in ("cpu", "cuda")
    )
    assert cpu.verdicts == gpu.verdicts and cpu.rankings == gpu.rankings
