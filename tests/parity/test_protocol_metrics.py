"""Every protocol's figures against naive twins, over the real annotations, as exact integers."""

import dataclasses
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cirray.core.errors import DataError
from cirray.data.benchmark import Protocol
from cirray.evaluation.chunked import Settings
from cirray.evaluation.lists import rank_lists
from cirray.evaluation.metrics import NEVER, refuse_nan
from cirray.evaluation.plan import make_plan
from cirray.evaluation.protocol_metrics import Judged, compute
from cirray.evaluation.vectors import rank_vectors
from cirray.evaluation.verdicts import row_verdict
from cirray.features.vector_files import VectorFile

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
REAL = SimpleNamespace(**runpy.run_path(str(FIXTURES / "public_annotations.py")))
NAIVE = SimpleNamespace(**runpy.run_path(str(FIXTURES / "naive_metrics.py")))
CIRR = Protocol(
    "cirr", "val", metrics=("recall", "recall_subset", "cirr_avg", "soft_recall", "soft_recall_subset"),
    ks=(1, 5, 10, 50),
)  # fmt: skip
FASHIONIQ = Protocol("fashioniq", "val", reference_rule="keep", metrics=("category_recall",), ks=(10, 50))
CIRCO = Protocol(
    "circo", "val", reference_rule="keep", metrics=("map", "target_recall", "aspect_map"), ks=(5, 10, 25, 50)
)
GENECIS = Protocol("genecis", reference_rule="keep", metrics=("task_recall",), ks=(1, 2, 3))
SHOES = Protocol("shoes", metrics=("recall", "mean_recall"), ks=(1, 10, 50))
KINDS = ("random", "tied", "duplicate", "constant", "infinite")


def draw(kind, count, rng):
    """One row of float32 scores."""
    scores_N = rng.standard_normal(count).astype(np.float32)
    if kind == "tied":
        return np.round(scores_N * 2) / 2
    if kind == "duplicate":
        scores_N[rng.integers(0, count, count // 3)] = scores_N[rng.integers(0, count, count // 3)]
    if kind == "constant":
        return np.full(count, 0.25, dtype=np.float32)
    if kind == "infinite":
        scores_N[scores_N < 0] = -np.inf
    return scores_N


def judge(plan, rows):
    verdicts = [
        row_verdict(
            query,
            row,
            plan.gallery(query).columns,
            plan.removed(query),
            plan.protocol.reference_rule,
            plan.gallery(query).copies,
        )
        for query, row in zip(plan.queries, rows, strict=True)
    ]
    return {item.name: item for item in compute(plan.protocol, Judged(plan.queries, verdicts))}


def rows_of(plan, kind, seed=0):
    """A row per query; targets are lifted a little, references a lot, as a model that copies its input does."""
    rng, rows = np.random.default_rng(seed), []
    for query in plan.queries:
        row, columns = draw(kind, len(plan.gallery(query)), rng), plan.gallery(query).columns
        if kind != "constant":
            row[[columns[name] for name in query.target_ids]] += 2
            if query.reference_id in columns:
                row[columns[query.reference_id]] += 3
        rows.append(row)
    return rows


def hits(measures):
    return {name: item.hits for name, item in measures.items() if item.hits is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["remove", "keep"])
def test_cirr_val_counts_what_the_naive_twin_counts(kind, rule):
    queries, gallery = REAL.cirr_val()
    queries = queries if kind == "random" and rule == "remove" else queries[::19]
    plan = make_plan(queries, gallery, dataclasses.replace(CIRR, reference_rule=rule))
    rows, ids = rows_of(plan, kind), list(plan.ids)
    found = judge(plan, rows)
    places, inner, soft, soft_inner = [], [], {k: 0.0 for k in (1, 5, 10, 50)}, {k: 0.0 for k in (1, 2, 3)}
    for query, row in zip(queries, rows, strict=True):
        labels = {name: label for name, label in query.soft if name != query.reference_id}
        hard = dict.fromkeys(query.target_ids, 1.0)
        places.append(NAIVE.first_hit(row, ids, query.target_ids, query.reference_id, rule == "remove"))
        order = NAIVE.subset_order(row, ids, query, hard)
        inner.append(order.index(query.target_ids[0]))
        graded = NAIVE.ranked(row, ids, labels, query.reference_id, rule == "remove")
        graded_inner = NAIVE.subset_order(row, ids, query, labels)
        for k in soft:
            soft[k] += NAIVE.soft(graded, labels, k)
        for k in soft_inner:
            soft_inner[k] += NAIVE.soft(graded_inner, labels, k)
    expected = {f"R@{k}": NAIVE.count_hits(places, k) for k in (1, 5, 10, 50)}
    expected |= {f"Rs@{k}": NAIVE.count_hits(inner, k) for k in (1, 2, 3)}
    assert hits(found) == expected
    five, one = expected["R@5"], expected["Rs@1"]
    assert found["Avg"].value == pytest.approx((five + one) / 2 / len(queries), abs=1e-12)
    for k, total in soft.items():
        assert found[f"soft R@{k}"].gains.sum() == pytest.approx(total, abs=1e-9)
    for k, total in soft_inner.items():
        assert found[f"soft Rs@{k}"].gains.sum() == pytest.approx(total, abs=1e-9)


def test_the_twins_are_not_trivially_equal_the_reference_and_the_soft_labels_matter():
    """Negative control: another rule gives other counts on the same scores."""
    queries, gallery = REAL.cirr_val()
    plan = make_plan(queries, gallery, CIRR)
    rows, ids = rows_of(plan, "random"), list(plan.ids)
    found = judge(plan, rows)
    kept = judge(make_plan(queries, gallery, dataclasses.replace(CIRR, reference_rule="keep")), rows)
    assert found["R@1"].hits > kept["R@1"].hits and found["R@50"].hits > kept["R@50"].hits
    assert found["soft R@50"].value != found["R@50"].value
    inner = []
    for query, row in zip(queries, rows, strict=True):
        score = {name: row[ids.index(name)] for name in query.subset}
        inner.append(sum(score[name] >= score[query.target_ids[0]] for name in query.subset) - 1)
    assert NAIVE.count_hits(inner, 1) < found["Rs@1"].hits, "the reference among the members must lower Rs@1"


@pytest.mark.parametrize("gallery_rule", ["original", "val_split"])
@pytest.mark.parametrize("kind", KINDS)
def test_fashioniq_val_counts_what_the_naive_twin_counts(kind, gallery_rule):
    queries, galleries = REAL.fashioniq_val(gallery_rule)
    queries = queries if kind == "random" and gallery_rule == "val_split" else queries[::19]
    rule = "keep" if kind in ("random", "constant") else "remove"
    plan = make_plan(queries, (), dataclasses.replace(FASHIONIQ, reference_rule=rule), galleries)
    rows = rows_of(plan, kind)
    found = judge(plan, rows)
    places = {category: [] for category in galleries}
    for query, row in zip(queries, rows, strict=True):
        ids = list(plan.gallery(query).ids)
        place = NAIVE.first_hit(row, ids, query.target_ids, query.reference_id, rule == "remove")
        places[query.gallery].append(place)
    expected = {f"{name} R@{k}": NAIVE.count_hits(places[name], k) for name in galleries for k in (10, 50)}
    assert hits(found) == expected
    means = {k: [expected[f"{name} R@{k}"] / len(places[name]) for name in galleries] for k in (10, 50)}
    for k in (10, 50):
        assert found[f"Avg R@{k}"].value == pytest.approx(sum(means[k]) / 3, abs=1e-12)
    assert found["Avg"].value == pytest.approx((sum(means[10]) + sum(means[50])) / 6, abs=1e-12)


def test_fashioniq_galleries_have_the_published_sizes():
    sizes = {rule: [len(ids) for ids in REAL.fashioniq_val(rule)[1].values()] for rule in ("original", "val_split")}
    assert sizes == {"original": [3817, 6346, 5373], "val_split": [2628, 3089, 2902]}


def test_the_fashioniq_average_is_not_that_of_the_pooled_queries():
    """Common mistake 4: categories of unequal difficulty and size tell the two apart."""
    queries, galleries = REAL.fashioniq_val()
    plan = make_plan(queries, (), FASHIONIQ, galleries)
    rng = np.random.default_rng(1)
    rows = [rng.standard_normal(len(plan.gallery(query))).astype(np.float32) for query in plan.queries]
    for query, row in zip(plan.queries, rows, strict=True):
        if query.gallery == "dress":
            row[plan.gallery(query).columns[query.target_ids[0]]] = 9.0
    found = judge(plan, rows)
    pooled = sum(found[f"{name} R@10"].hits for name in galleries) / len(queries)
    assert found["dress R@10"].value == 1.0
    assert abs(found["Avg R@10"].value - pooled) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["keep", "remove"])
def test_circo_val_counts_what_the_naive_twin_counts(kind, rule):
    queries, gallery = REAL.circo("val", images=3000)
    plan = make_plan(queries, gallery, dataclasses.replace(CIRCO, reference_rule=rule))
    rows, ids = rows_of(plan, kind), list(plan.ids)
    found = judge(plan, rows)
    aspects = sorted({tag for query in queries for tag in query.tags})
    total, count, first = {k: 0.0 for k in CIRCO.ks}, {k: 0 for k in CIRCO.ks}, []
    by_aspect = {name: [] for name in aspects}
    for query, row in zip(queries, rows, strict=True):
        order = NAIVE.ranked(row, ids, dict.fromkeys(query.target_ids, 1.0), query.reference_id, rule == "remove")
        for k in CIRCO.ks:
            value, hit = NAIVE.circo_ap(order, query.target_ids, k)
            total[k], count[k] = total[k] + value, count[k] + hit
        first.append(NAIVE.first_hit(row, ids, query.target_ids[:1], query.reference_id, rule == "remove"))
        for tag in query.tags:
            by_aspect[tag].append(NAIVE.circo_ap(order, query.target_ids, 10)[0])
    for k in CIRCO.ks:
        assert found[f"mAP@{k}"].value == pytest.approx(total[k] / len(queries), abs=1e-12)
        assert found[f"mAP@{k}"].hits == count[k]
        assert found[f"target R@{k}"].hits == NAIVE.count_hits(first, k)
    assert len(aspects) == 9
    for name, values in by_aspect.items():
        assert found[f"mAP@10 {name}"].value == pytest.approx(sum(values) / len(values), abs=1e-12)
        assert found[f"mAP@10 {name}"].queries == len(values)


@pytest.mark.parametrize("kind", KINDS)
def test_genecis_counts_what_the_naive_twin_counts(kind):
    queries, galleries = REAL.genecis()
    plan = make_plan(queries, (), GENECIS, galleries)
    rng, rows, places = np.random.default_rng(0), [], {}
    for query in queries:
        own = sorted(set(galleries[query.gallery]))
        score = dict(zip(own, draw(kind, len(own), rng).tolist(), strict=True))
        rows.append(np.array([score[name] for name in plan.gallery(query).ids], dtype=np.float32))
        candidates = galleries[query.gallery]
        place = NAIVE.genecis_place([score[name] for name in candidates], candidates)
        places.setdefault(query.gallery.split("/")[0], []).append(place)
    found = judge(plan, rows)
    expected = {f"{task} R@{k}": NAIVE.count_hits(places[task], k) for task in places for k in (1, 2, 3)}
    assert hits(found) == expected and len(expected) == 12
    mean = sum(expected[f"{task} R@1"] / len(places[task]) for task in places) / 4
    assert found["Avg R@1"].value == pytest.approx(mean, abs=1e-12)


def authors_places(queries, galleries, scores, last=False):
    """Place of the target among `[target, *gallery]` after a stable sort, as GeneCIS's evaluation counts it."""
    found = []
    for query in queries:
        own = galleries[query.gallery]
        names = [*own[1:], own[0]] if last else list(own)
        order = torch.sort(torch.tensor([scores[name] for name in names]), descending=True, stable=True).indices
        found.append(order.tolist().index(len(names) - 1 if last else 0))
    return found


def test_genecis_counts_what_the_authors_procedure_counts():
    """Scores without ties between different images; copies tie with themselves. Target last is the negative control."""
    queries, galleries = REAL.genecis()
    plan = make_plan(queries, (), GENECIS, galleries)
    names = sorted({name for ids in galleries.values() for name in ids})
    doubled = ("focus_attribute/14", "change_object/19")
    order = np.random.default_rng(5).permutation(len(names)).astype(np.float64)
    scores = dict(zip(names, order.tolist(), strict=True))
    scores |= {q.target_ids[0]: 1e6 + at for at, q in enumerate(queries) if q.query_id in doubled}
    found = judge(plan, [np.array([scores[name] for name in plan.gallery(q).ids]) for q in queries])
    for last, equal in ((False, True), (True, False)):
        places = dict(zip(queries, authors_places(queries, galleries, scores, last), strict=True))
        counts = {
            f"{task} R@{k}": sum(place < k for query, place in places.items() if query.gallery.startswith(task))
            for task in REAL.TASKS
            for k in (1, 2, 3)
        }
        assert (hits(found) == counts) is equal


def test_genecis_candidates_are_the_target_and_its_gallery():
    queries, galleries = REAL.genecis()
    sizes = {task: {len(galleries[q.gallery]) for q in queries if q.gallery.startswith(task)} for task in REAL.TASKS}
    assert sizes == {
        "focus_attribute": {10}, "change_attribute": {15}, "focus_object": {15}, "change_object": {15}
    }  # fmt: skip


def test_a_copy_of_the_target_in_a_genecis_gallery_is_the_target():
    """Two templates hold their target twice. The authors' code counts candidate 0 after a stable sort, so a perfect
    model gets all; an equal score of any other image still counts against it."""
    queries, galleries = REAL.genecis()
    plan = make_plan(queries, (), GENECIS, galleries)
    rows = [np.array([name in query.target_ids for name in plan.gallery(query).ids], float) for query in queries]
    found = judge(plan, rows)
    doubled = [q.query_id for q in queries if galleries[q.gallery].count(q.target_ids[0]) > 1]
    assert doubled == ["focus_attribute/14", "change_object/19"]
    assert [found[f"{task} R@1"].hits for task in REAL.TASKS] == [2000, 2112, 1960, 1960]
    constant = judge(plan, [np.ones(len(row)) for row in rows])
    assert [constant[f"{task} R@3"].hits for task in REAL.TASKS] == [0, 0, 0, 0]


def test_genecis_by_lists_counts_what_vectors_count():
    """Whole lists with every copy, each image once, and lists cut to three give the places of the scores."""
    queries, galleries = REAL.genecis()
    doubled = [q for q in queries if len(set(galleries[q.gallery])) < len(galleries[q.gallery])]
    chosen = list(dict.fromkeys((*doubled, *queries[::40])))
    plan = make_plan(chosen, (), GENECIS, galleries)
    names = sorted({name for query in chosen for name in galleries[query.gallery]})
    rng = np.random.default_rng(3)
    images, rows = (rng.integers(-5, 6, (count, 4)).astype(np.float32) for count in (len(names), len(chosen)))
    asked = VectorFile("q", tuple(query.query_id for query in chosen), rows)
    settings = Settings(normalize=False)
    ranked = rank_vectors(plan, asked, [VectorFile("g", tuple(names), images)], settings, top_k=15)
    places = [verdict.rank for verdict in ranked.verdicts]
    score_of = [dict(zip(names, (images @ row).tolist(), strict=True)) for row in rows]
    assert places == [
        NAIVE.genecis_place([score[name] for name in galleries[query.gallery]], galleries[query.gallery])
        for query, score in zip(chosen, score_of, strict=True)
    ]
    # A list says its own order: targets behind every image that scores as high, as the scores are counted.
    whole = {
        query.query_id: sorted(galleries[query.gallery], key=lambda n: (-score[n], n in query.target_ids, n))
        for query, score in zip(chosen, score_of, strict=True)
    }
    for lists in (whole, {name: tuple(dict.fromkeys(ids)) for name, ids in whole.items()}):
        assert [verdict.rank for verdict in rank_lists(plan, lists, {}, "x").verdicts] == places
    short = rank_lists(plan, {name: ids[:3] for name, ids in whole.items()}, {}, "x").verdicts
    assert [min(verdict.rank, 3) for verdict in short] == [min(place, 3) for place in places]
    with pytest.raises(DataError, match="twice"):
        rank_lists(plan, {name: (*ids, ids[0]) for name, ids in whole.items()}, {}, "x")


@pytest.mark.parametrize("kind", KINDS)
def test_shoes_counts_what_the_naive_twin_counts(kind):
    queries, gallery = REAL.shoes()
    assert (len(queries), len(gallery)) == (1732, 4621)
    queries = queries if kind == "random" else queries[::5]
    plan = make_plan(queries, gallery, SHOES)
    rows, ids = rows_of(plan, kind), list(plan.ids)
    found = judge(plan, rows)
    places = [
        NAIVE.first_hit(row, ids, query.target_ids, query.reference_id, True)
        for query, row in zip(queries, rows, strict=True)
    ]
    expected = {f"R@{k}": NAIVE.count_hits(places, k) for k in SHOES.ks}
    assert hits(found) == expected
    assert found["mean R@1,10,50"].value == pytest.approx(sum(expected.values()) / 3 / len(queries), abs=1e-12)


def test_perfect_scores_give_a_hundred_except_where_the_target_is_the_removed_reference():
    queries, gallery = REAL.shoes()
    plan = make_plan(queries, gallery, SHOES)
    rows = [np.array([name in query.target_ids for name in plan.ids], dtype=float) for query in queries]
    found = judge(plan, rows)
    assert {name: len(queries) - found[name].hits for name in ("R@1", "R@10", "R@50")} == dict.fromkeys(
        ("R@1", "R@10", "R@50"), 1
    )
    queries, gallery = REAL.cirr_val()
    plan = make_plan(queries, gallery, CIRR)
    rows = [np.array([name in query.target_ids for name in plan.ids], dtype=float) for query in queries]
    found = judge(plan, rows)
    assert all(found[name].value == 1.0 for name in ("R@1", "Rs@1", "Avg"))


def test_constant_scores_give_zero_for_every_benchmark():
    cases = [
        (*REAL.cirr_val(), None, CIRR), (*REAL.shoes(), None, SHOES), (*REAL.circo("val"), None, CIRCO),
        (REAL.fashioniq_val()[0], (), REAL.fashioniq_val()[1], FASHIONIQ),
        (REAL.genecis()[0], (), REAL.genecis()[1], GENECIS),
    ]  # fmt: skip
    for queries, gallery, galleries, protocol in cases:
        plan = make_plan(queries[::10], gallery, protocol, galleries)
        found = judge(plan, [np.full(len(plan.gallery(query)), 0.5) for query in plan.queries])
        assert {name: item.value for name, item in found.items() if item.value} == {}, protocol.dataset


def test_scores_that_are_not_numbers_are_refused():
    scores_BN = np.zeros((2, 5))
    scores_BN[1, 3] = np.nan
    with pytest.raises(DataError, match="Query '12063' has a score that is not a number"):
        refuse_nan(scores_BN, ["12060", "12063"])


def test_cirr_pair_ids_are_names_not_list_positions():
    """Common mistake 3: the ids of the validation split are not contiguous."""
    queries, _ = REAL.cirr_val()
    numbers = [int(query.query_id) for query in queries]
    assert len(set(numbers)) == 4181 and max(numbers) - min(numbers) > 4181


def test_a_cirr_gallery_of_captioned_images_only_loses_targets_and_is_refused():
    """Common mistake 2: the gallery is the split file, not the references of the captions."""
    queries, gallery = REAL.cirr_val()
    assert len(gallery) == 2297
    references = sorted({query.reference_id for query in queries})
    with pytest.raises(DataError, match="which is not among the 2,165 gallery images"):
        make_plan(queries, references, CIRR)


def test_a_blank_or_non_ascii_caption_and_an_empty_fashioniq_caption_pass_through():
    queries, gallery = REAL.cirr_test()
    assert {query.query_id: query.modification for query in queries}["27098"] == " "
    assert len(make_plan(queries, gallery, CIRR, scored=False).queries) == 4148
    queries, galleries = REAL.fashioniq_val()
    empty = next(query for query in queries if query.query_id == "shirt-1928")
    assert empty.modification.startswith(" and ")
    assert make_plan(queries, (), FASHIONIQ, galleries).queries[queries.index(empty)] == empty


def test_targets_not_published_are_refused_with_the_way_out():
    queries, gallery = REAL.cirr_test()
    with pytest.raises(DataError, match=r"has no target.*cirray submit"):
        make_plan(queries, gallery, CIRR)


def test_half_precision_scores_change_the_counts():
    """Common mistake 7: thousands of candidates at half precision tie exactly."""
    queries, gallery = REAL.cirr_val()
    plan = make_plan(queries[::3], gallery, dataclasses.replace(CIRR, metrics=("recall",)))
    rows = [0.3 + 0.01 * row for row in rows_of(plan, "random")]
    halves = [row.astype(np.float16).astype(np.float64) for row in rows]
    assert judge(plan, rows)["R@50"].hits > judge(plan, halves)["R@50"].hits


def test_an_unreachable_target_is_never_a_hit_at_any_depth():
    queries, gallery = REAL.shoes()
    plan = make_plan([q for q in queries if q.reference_id in q.target_ids], gallery, SHOES)
    (query,) = plan.queries
    verdict = row_verdict(query, np.ones(len(plan.ids)), plan.gallery(query).columns, plan.removed(query), "remove")
    assert verdict.rank == NEVER and verdict.places == (NEVER,)


def test_a_genecis_gallery_without_its_target_is_refused():
    """Common mistake 6: candidates are the target and the gallery."""
    queries, galleries = REAL.genecis()
    bare = {name: ids[1:] for name, ids in galleries.items()}
    with pytest.raises(DataError, match="Query 'focus_attribute/0' has the target .* not among the 9 gallery images"):
        make_plan(queries, (), GENECIS, bare)


def test_the_fashioniq_galleries_of_the_two_rules_are_told_apart_by_the_protocol_s_line():
    """Common mistake 4: the smaller gallery gives higher numbers."""
    lines = {
        rule: make_plan(REAL.fashioniq_val(rule)[0], (), FASHIONIQ, REAL.fashioniq_val(rule)[1]).describe()
        for rule in ("original", "val_split")
    }
    assert "dress 3,817, shirt 6,346, toptee 5,373 images; 15,415 distinct" in lines["original"]
    assert "dress 2,628, shirt 3,089, toptee 2,902" in lines["val_split"]
