"""Metrics on hand-made cases, and what must hold for any scores."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cirray.core.errors import ConfigError, DataError
from cirray.data.benchmark import Protocol
from cirray.evaluation.measures import interval, measure
from cirray.evaluation.metrics import NEVER
from cirray.evaluation.plan import make_plan
from cirray.evaluation.protocol_metrics import (
    METRICS,
    Judged,
    average_precision,
    compute,
    group_of,
    soft_gain,
)
from cirray.evaluation.verdicts import Verdict, check_list, row_verdict, verdict_from_list
from cirray.types import Query

IDS = tuple(f"im-{n:02d}" for n in range(12))
EVERY = Protocol(
    "toy", metrics=("recall", "recall_subset", "cirr_avg", "soft_recall", "soft_recall_subset"), ks=(1, 3)
)  # fmt: skip


def query(name="q", reference=0, targets=(3,), subset=(0, 1, 2, 3, 4, 5), soft=(), tags=("a",), gallery="g"):
    return Query(
        name, IDS[reference], "text", tuple(IDS[t] for t in targets), gallery=gallery,
        subset=tuple(IDS[n] for n in subset), soft=tuple((IDS[n], label) for n, label in soft), tags=tags,
    )  # fmt: skip


def judged(queries, rows, protocol, ids=IDS):
    plan = make_plan(queries, (), protocol, {"g": ids, "h": ids})
    verdicts = [
        row_verdict(q, np.asarray(row, dtype=np.float64)[np.argsort(ids)], plan.gallery(q).columns, plan.removed(q),
                    protocol.reference_rule)
        for q, row in zip(queries, rows, strict=True)
    ]  # fmt: skip
    return Judged(plan.queries, verdicts)


def values(queries, rows, protocol, ids=IDS):
    return {item.name: item.value for item in compute(protocol, judged(queries, rows, protocol, ids))}


def verdict(places=(0,), **fields):
    return Verdict(rank=places[0], places=tuple(places), first=places[0], **fields)


def test_average_precision_divides_by_k_where_there_are_more_ground_truths_than_k():
    assert average_precision([0, 1, 2, 3, 4, 5, 6], 5) == 1.0
    assert average_precision([0, 2, 7, 8, 9, 10, 11], 5) == pytest.approx((1 + 2 / 3) / 5)


def test_average_precision_divides_by_the_ground_truths_where_there_are_fewer_than_k():
    assert average_precision([1], 5) == 0.5
    assert average_precision([0, 1], 5) == 1.0
    assert average_precision([0, 99], 5) == 0.5, "not by the hits found"


def test_a_short_list_earns_what_it_holds():
    short = verdict_from_list(query(targets=(3, 4, 5)), [IDS[3], IDS[9]], None, "keep")
    assert short.places == (0, NEVER, NEVER)
    assert average_precision(short.places, 5) == pytest.approx(1 / 3)


def test_the_soft_gain_is_the_largest_label_in_reach_and_never_below_zero():
    scores = np.arange(12, 0, -1.0)
    labels = ((1, 0.5), (2, 0.2), (3, 1.0), (4, -1.0))
    rows, asked = [scores], [query(soft=labels)]
    found = judged(asked, rows, dataclasses.replace(EVERY, metrics=("soft_recall",))).verdicts[0].levels
    assert [soft_gain(found, k) for k in (1, 2, 3)] == [0.5, 0.5, 1.0]
    only_bad = judged([query(soft=((4, -1.0),))], rows, EVERY).verdicts[0].levels
    assert soft_gain(only_bad, 50) == 0.0


def test_tied_soft_targets_earn_the_least_that_their_order_allows():
    scores = np.zeros(12)
    scores[[1, 2, 3]] = 5.0
    found = judged([query(soft=((1, 1.0), (2, 0.2)))], [scores], EVERY).verdicts[0].levels
    assert [soft_gain(found, k) for k in (1, 2, 3)] == [0.0, 0.2, 1.0]


def test_a_query_whose_only_soft_target_is_its_reference_earns_nothing():
    """37 queries of CIRR's validation split are like that."""
    found = judged([query(soft=((0, 1.0),))], [np.arange(12.0)[::-1]], EVERY)
    assert found.verdicts[0].levels == ()


def test_the_subset_is_ranked_without_the_reference():
    scores = np.zeros(12)
    scores[0], scores[3] = 9.0, 5.0
    found = values([query()], [scores], EVERY)
    assert found["Rs@1"] == found["R@1"] == found["Avg"] == 1.0
    kept = judged([query()], [scores], dataclasses.replace(EVERY, reference_rule="keep")).verdicts[0]
    assert kept.subset == 0 and kept.rank == 1


def test_cirr_avg_is_the_mean_of_recall_at_5_and_subset_recall_at_1():
    protocol = dataclasses.replace(EVERY, metrics=("cirr_avg",))
    near = np.zeros(12)
    near[[6, 7, 1, 3]] = (9, 8, 7, 6)
    assert values([query()], [near], protocol) == {"Avg": 0.5}


def test_category_means_are_not_weighted_by_queries():
    queries = [query("a"), query("b"), query("c"), query("d", gallery="h")]
    hit, miss = np.zeros(12), np.zeros(12)
    hit[3] = 1.0
    found = values(queries, [hit, hit, hit, miss], dataclasses.replace(EVERY, metrics=("category_recall",), ks=(1,)))
    assert found == {"g R@1": 1.0, "h R@1": 0.0, "Avg R@1": 0.5, "Avg": 0.5}


def test_task_recall_takes_the_task_from_tags_or_from_the_gallery_name():
    assert group_of(query(tags=("focus_object",))) == "focus_object"
    assert group_of(query(tags=(), gallery="change_object/12")) == "change_object"
    assert group_of(query(tags=(), gallery="plain")) == ""


def test_only_the_first_target_counts_for_target_recall():
    scores = np.zeros(12)
    scores[[4, 3]] = (2.0, 1.0)
    found = values([query(targets=(3, 4))], [scores], Protocol("circo", metrics=("target_recall", "recall"), ks=(1, 2)))
    assert found == {"target R@1": 0.0, "target R@2": 1.0, "R@1": 1.0, "R@2": 1.0}


def test_set_recall_and_precision_count_every_target_and_average_over_groups():
    scores = np.arange(12, 0, -1.0)
    queries = [query("a", reference=11, targets=(0, 1, 9), tags=("toy",)), query("b", reference=11, tags=("origami",))]
    found = values(queries, [scores, scores], Protocol("r", metrics=("set_recall", "precision"), ks=(2, 4)))
    assert found["toy set R@2"] == pytest.approx(2 / 3) and found["origami set R@4"] == 1.0
    assert found["set R@2"] == pytest.approx(1 / 3) and found["P@4"] == pytest.approx((2 / 4 + 1 / 4) / 2)


def test_a_query_counts_under_each_of_its_aspects():
    queries = [query("a", tags=("x", "y")), query("b", tags=("y",))]
    hit, miss = np.zeros(12), np.zeros(12)
    hit[3] = 1.0
    found = values(queries, [hit, miss], Protocol("circo", metrics=("aspect_map",)))
    assert found["mAP@10 x"] == 1.0 and found["mAP@10 y"] == pytest.approx(0.5)


def test_queries_without_targets_are_refused_with_the_way_out():
    with pytest.raises(DataError, match=r"'q' has no target.*cirray submit"):
        make_plan([query(targets=())], IDS, EVERY, {"g": IDS})


@pytest.mark.parametrize(
    ("change", "metrics", "sentence"),
    [
        ({"subset": ()}, ("recall_subset",), "'q' has no subset"),
        ({"subset": (1, 2)}, ("cirr_avg",), "target 'im-03' outside its subset of 2"),
        ({"gallery": ""}, ("category_recall",), "'q' names no gallery"),
        ({"tags": ()}, ("aspect_map",), "'q' has no tag"),
    ],
)
def test_what_a_metric_needs_is_checked_before_anything_is_computed(change, metrics, sentence):
    with pytest.raises(DataError, match=sentence):
        make_plan([query(**change)], IDS, dataclasses.replace(EVERY, metrics=metrics), {"g": IDS})


def test_an_unknown_metric_or_gallery_answers_with_the_known_ones():
    with pytest.raises(ConfigError, match="Unknown metric 'recal'. Did you mean 'recall'"):
        make_plan([query()], IDS, dataclasses.replace(EVERY, metrics=("recal",)), {"g": IDS})
    with pytest.raises(DataError, match="Unknown gallery 'g'"):
        make_plan([query()], IDS, EVERY, {"gg": IDS})


def test_two_metrics_that_share_a_figures_name_are_refused():
    with pytest.raises(ConfigError, match="figure 'Avg' twice"):
        values([query()], [np.zeros(12)], dataclasses.replace(EVERY, metrics=("cirr_avg", "category_recall")))


def test_an_empty_gallery_is_refused_before_anything_is_encoded():
    with pytest.raises(DataError, match="gallery '' of data set 'toy' holds no image"):
        make_plan([query(gallery="")], (), EVERY)


def test_subset_images_and_graded_targets_must_be_in_the_gallery():
    for change in ({"subset": (0, 3, 11)}, {"soft": ((11, 0.5),)}):
        with pytest.raises(DataError, match="'im-11', which is not among the 11 gallery images"):
            make_plan([query(**change)], IDS[:11], EVERY, {"g": IDS[:11]})


def test_the_registry_holds_exactly_the_protocols_names():
    assert METRICS.names() == sorted(
        "recall recall_subset cirr_avg soft_recall soft_recall_subset category_recall map aspect_map target_recall "
        "task_recall set_recall precision mean_recall".split()
    )


def test_a_list_gives_the_subset_order_or_says_that_it_is_open():
    asked = query()
    assert verdict_from_list(asked, [IDS[9], IDS[0], IDS[2], IDS[3]], None, "remove").subset == 1
    assert verdict_from_list(asked, [IDS[9], IDS[2]], None, "remove").subset is None
    assert verdict_from_list(asked, [IDS[9]], [IDS[0], IDS[5], IDS[3]], "remove").subset == 1
    open_ended = Judged([asked], [verdict_from_list(asked, [IDS[9]], None, "remove")])
    with pytest.raises(DataError, match="order of the subset of query 'q' is not known"):
        compute(dataclasses.replace(EVERY, metrics=("recall_subset",)), open_ended)


def test_the_reference_in_a_list_is_skipped_only_if_the_rule_says_so():
    asked = query()
    assert verdict_from_list(asked, [IDS[0], IDS[3]], None, "remove").rank == 0
    assert verdict_from_list(asked, [IDS[0], IDS[3]], None, "keep").rank == 1


def test_a_list_with_a_doubled_or_unknown_id_is_refused_by_name():
    with pytest.raises(DataError, match="'q' holds 'im-01' twice"):
        check_list(query(), [IDS[1], IDS[2], IDS[1]], IDS)
    with pytest.raises(DataError, match="'q' holds 'else', which is not among the 12"):
        check_list(query(), ["else"], set(IDS))


def test_the_interval_of_a_category_mean_weights_categories_equally():
    groups = np.repeat([0, 1], [900, 100])
    figure = measure("Avg", (groups == 1).astype(float), groups=groups)
    assert figure.value == 0.5
    assert interval(figure, [str(n) for n in range(1000)]) == (0.5, 0.5)


def test_a_measure_of_no_query_is_refused():
    with pytest.raises(DataError, match="R@1 needs at least one query"):
        measure("R@1", [])


scores_row = st.lists(
    st.one_of(st.sampled_from([0.0, 0.5, -1.0, float("-inf")]), st.floats(-1, 1, width=16)), min_size=12, max_size=12
)
soft_labels = st.lists(
    st.tuples(st.integers(1, 11), st.sampled_from([1.0, 0.5, 0.2, -1.0])), max_size=4, unique_by=lambda item: item[0]
)
ANY = dataclasses.replace(
    EVERY, metrics=tuple(name for name in METRICS.names() if name not in ("category_recall", "task_recall"))
)


@st.composite
def cases(draw):
    """Queries with any targets, subsets and labels, and any scores, finite or -inf, tied or not."""
    queries, rows = [], []
    for at in range(draw(st.integers(1, 4))):
        targets = draw(st.lists(st.integers(0, 11), min_size=1, max_size=4, unique=True))
        subset = tuple(dict.fromkeys((targets[0], *draw(st.lists(st.integers(0, 11), max_size=5)))))
        queries.append(query(f"q{at}", 0, tuple(targets), subset, draw(soft_labels), ("x", "y")[: 1 + at % 2]))
        rows.append(draw(scores_row))
    return queries, rows


@settings(max_examples=80, deadline=None)
@given(cases(), st.permutations(range(12)))
def test_permuting_the_gallery_changes_no_figure(case, order):
    queries, rows = case
    if any(set(q.subset) == {q.reference_id} for q in queries):
        return
    moved = [[row[at] for at in order] for row in rows]
    assert values(queries, rows, ANY) == values(queries, moved, ANY, tuple(IDS[at] for at in order))


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from([0.5, 2.0, 8.0]), st.sampled_from([-4.0, 0.0, 4.0]))
def test_a_monotone_rescaling_changes_no_figure(case, scale, shift):
    queries, rows = case
    if any(set(q.subset) == {q.reference_id} for q in queries):
        return
    assert values(queries, rows, ANY) == values(queries, (np.asarray(rows) * scale + shift).tolist(), ANY)


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(-1, 1))
def test_a_constant_score_earns_nothing(case, constant):
    queries = [dataclasses.replace(q, subset=IDS) for q in case[0]]
    queries = [q for q in queries if len(set(q.target_ids) | {q.reference_id} | {n for n, _ in q.soft}) < 9]
    if not queries:
        return
    small = tuple(name for name in ANY.metrics if name != "aspect_map")  # its K of 10 nearly covers this gallery
    found = values(queries, [[constant] * 12 for _ in queries], dataclasses.replace(ANY, metrics=small, ks=(1, 3)))
    assert {name: value for name, value in found.items() if value} == {}


@settings(max_examples=60, deadline=None)
@given(cases())
def test_perfect_scores_earn_everything_that_can_be_earned(case):
    queries = [q for q in case[0] if q.reference_id not in q.target_ids]
    if not queries:
        return
    rows = [[float(name in q.target_ids) for name in IDS] for q in queries]
    found = values(queries, rows, ANY)
    one = [name for name in found if name.startswith(("R@", "Rs@", "Avg", "mAP", "mean"))]
    assert {name: found[name] for name in one} == dict.fromkeys(one, 1.0)


@settings(max_examples=80, deadline=None)
@given(cases(), st.sampled_from(["remove", "keep"]))
def test_without_ties_scores_and_the_list_that_they_give_agree(case, rule):
    queries, _ = case
    rng = np.random.default_rng(len(queries))
    rows = [rng.permutation(12).astype(float) for _ in queries]
    protocol = dataclasses.replace(ANY, reference_rule=rule)
    lists = [[IDS[at] for at in np.argsort(-row)] for row in rows]
    by_list = [verdict_from_list(q, ids, None, rule) for q, ids in zip(queries, lists, strict=True)]
    for one, other in zip(judged(queries, rows, protocol).verdicts, by_list, strict=True):
        assert (one.rank, one.levels, one.subset) == (other.rank, other.levels, other.subset)
        assert one.places == other.places
