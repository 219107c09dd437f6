import numpy as np
import pytest
import torch

from cirray.core.errors import DataError
from cirray.data.benchmark import Protocol
from cirray.evaluation.baselines import ImageOnly
from cirray.evaluation.evaluate import evaluate_retriever, rank_queries
from cirray.evaluation.plan import make_plan
from cirray.evaluation.result import ranking_rows
from cirray.types import Query

IDS = [f"im-{n}" for n in range(6)]


class Table:
    def __init__(self, patches):
        self.patches, self.asked = patches, []

    def get(self, ids):
        self.asked.append(list(ids))
        return np.stack([self.patches[IDS.index(name)] for name in ids]).astype(np.float16)


class Oracle(torch.nn.Module):
    """The text is the target's column; `noise` makes every score the same or not a number."""

    def __init__(self, constant=None):
        super().__init__()
        self.constant, self.modes = constant, []

    def tokenize(self, texts):
        return torch.tensor([int(text) for text in texts])

    def encode_reference(self, patches_BPD):
        self.modes.append(self.training)
        assert patches_BPD.dtype == torch.float32
        return patches_BPD

    def compose(self, state, text):
        return torch.eye(6)[text]

    def encode_gallery(self, patches_BPD):
        return patches_BPD

    def score(self, query_BD, gallery_NQD):
        scores_BN = query_BD @ gallery_NQD[:, 0].T
        return scores_BN if self.constant is None else torch.full_like(scores_BN, self.constant)


def queries(*triples):
    return [Query(f"q{n}", IDS[r], str(t), (IDS[t],), edit=e) for n, (r, t, e) in enumerate(triples)]


@pytest.fixture
def table():
    return Table(np.eye(6)[:, None])


QUERIES = queries((0, 1, "add"), (0, 2, "move"), (3, 4, "add"))
PROTOCOL = Protocol("toy", ks=(1, 5))


def test_perfect_features_give_a_hundred_percent(table):
    result = evaluate_retriever(Oracle(), table, QUERIES, IDS, PROTOCOL)
    assert result.metrics == {"R@1": 1.0, "R@5": 1.0}
    assert {name: group.recalls["R@1"] for name, group in result.per_edit.items()} == {"add": 1.0, "move": 1.0}
    assert [ranking.ids[0] for ranking in result.rankings] == [query.target_ids[0] for query in QUERIES]


def test_constant_scores_give_zero_below_the_gallery_size(table):
    result = evaluate_retriever(Oracle(0.7), table, QUERIES, IDS, Protocol("toy", ks=(1, 4)))
    assert result.metrics == {"R@1": 0.0, "R@4": 0.0}


def test_scores_that_are_not_numbers_are_an_error_naming_the_query(table):
    with pytest.raises(DataError, match="Query 'q0'.*not a number"):
        evaluate_retriever(Oracle(float("nan")), table, QUERIES, IDS, PROTOCOL)


def test_a_target_outside_the_gallery_is_an_error_naming_query_and_target(table):
    with pytest.raises(DataError, match="Query 'q2' has the target 'im-4'"):
        evaluate_retriever(Oracle(), table, QUERIES, IDS[:4], PROTOCOL)


def test_a_doubled_gallery_id_no_queries_and_no_targets_are_errors(table):
    with pytest.raises(DataError, match="'im-2' appears twice"):
        evaluate_retriever(Oracle(), table, QUERIES, [*IDS, "im-2"], PROTOCOL)
    with pytest.raises(DataError, match="no queries"):
        evaluate_retriever(Oracle(), table, [], IDS, PROTOCOL)
    with pytest.raises(DataError, match="'q' has no target"):
        evaluate_retriever(Oracle(), table, [Query("q", IDS[0], "1", ())], IDS, PROTOCOL)


def test_a_removed_reference_is_in_no_list_and_a_kept_one_is(table):
    removed = evaluate_retriever(Oracle(), table, QUERIES, IDS, PROTOCOL)
    kept = evaluate_retriever(Oracle(), table, QUERIES, IDS, Protocol("toy", reference_rule="keep", ks=(1,)))
    assert [len(ranking.ids) for ranking in removed.rankings] == [5, 5, 5]
    assert all(query.reference_id not in run.ids for query, run in zip(QUERIES, removed.rankings, strict=True))
    assert all(query.reference_id in run.ids for query, run in zip(QUERIES, kept.rankings, strict=True))


def test_a_reference_outside_the_gallery_is_fine(table):
    result = evaluate_retriever(Oracle(), table, queries((5, 1, "")), IDS[:5], PROTOCOL)
    assert result.metrics["R@1"] == 1.0 and result.per_edit == {}


def test_lists_are_cut_at_top_k_and_break_ties_by_image_id(table):
    result = evaluate_retriever(Oracle(0.5), table, QUERIES[:1], IDS[::-1], PROTOCOL, top_k=3)
    assert result.rankings[0].ids == ("im-1", "im-2", "im-3")
    assert result.rankings[0].scores == (0.5, 0.5, 0.5)


def test_the_model_is_evaluated_in_evaluation_mode_and_left_as_it_was(table):
    model = Oracle().train()
    evaluate_retriever(model, table, QUERIES, IDS, PROTOCOL)
    assert set(model.modes) == {False} and model.training


def test_every_gallery_image_is_read_once(table):
    evaluate_retriever(Oracle(), table, QUERIES, IDS, PROTOCOL, batch=4)
    gallery = [name for names in table.asked[:2] for name in names]
    assert sorted(gallery) == IDS


def test_progress_counts_images_and_queries(table):
    seen = []
    evaluate_retriever(Oracle(), table, QUERIES, IDS, PROTOCOL, batch=4, advance=lambda n=1, note="": seen.append(n))
    assert sum(seen) == len(IDS) + len(QUERIES)


def test_the_protocol_line_names_rule_sizes_and_ties(table):
    line = evaluate_retriever(Oracle(), table, QUERIES, IDS, PROTOCOL).protocol
    for part in ("toy/test", "own reference removed", "3 queries over 6 images", "ties against the method"):
        assert part in line


def test_the_result_as_json_holds_integer_hits_and_intervals(table):
    found = evaluate_retriever(Oracle(), table, QUERIES, IDS, PROTOCOL).to_dict()
    assert found["hits"] == {"R@1": 3, "R@5": 3} and found["intervals_95"]["R@1"] == [1.0, 1.0]
    assert found["median_rank"] == 1.0 and found["per_edit"]["add"]["queries"] == 2


def test_ranking_rows_count_ranks_from_one_and_leave_unreachable_ones_empty(table):
    hopeless = [Query("q", IDS[0], "0", (IDS[0],))]
    rows = ranking_rows("m", 0, evaluate_retriever(Oracle(), table, [*QUERIES, *hopeless], IDS, PROTOCOL))
    assert [row["rank"] for row in rows] == [1, 1, 1, None]


def test_image_only_ranks_by_likeness_and_ignores_the_text():
    patches = np.random.default_rng(0).normal(size=(6, 2, 4))
    patches[3] = patches[0] + 0.01
    baseline = ImageOnly.fit(Table(patches), IDS, batch=4)
    asked = [Query("a", IDS[0], "x", (IDS[3],)), Query("b", IDS[0], "y", (IDS[4],))]
    result = evaluate_retriever(baseline, Table(patches), asked, IDS, PROTOCOL)
    assert result.rankings[0].ids[0] == IDS[3]
    assert result.rankings[0].ids == result.rankings[1].ids


def test_image_only_is_centred_on_the_gallery():
    patches = np.random.default_rng(0).normal(size=(6, 2, 4)) + 50
    baseline = ImageOnly.fit(Table(patches), IDS)
    vectors = baseline.encode_gallery(torch.from_numpy(Table(patches).get(IDS).astype(np.float32)))
    assert vectors.mean(dim=0).norm() < 0.2


def test_a_query_searches_the_gallery_it_names(table):
    asked = [
        Query("a", IDS[0], "1", (IDS[1],), gallery="left"),
        Query("b", IDS[3], "5", (IDS[5],), gallery="right"),
        Query("c", IDS[0], "2", (IDS[2],), gallery="left"),
    ]
    galleries = {"left": IDS[:3], "right": IDS[3:][::-1]}
    protocol = Protocol("toy", metrics=("category_recall",), ks=(1,))
    result = evaluate_retriever(Oracle(), table, asked, (), protocol, galleries=galleries, batch=2)
    assert [len(ranking.ids) for ranking in result.rankings] == [2, 2, 2]
    assert [ranking.query_id for ranking in result.rankings] == ["a", "b", "c"]
    assert result.metrics == {"left R@1": 1.0, "right R@1": 1.0, "Avg R@1": 1.0, "Avg": 1.0}
    assert "left 3, right 3 images; 6 distinct" in result.protocol and "category_recall" in result.protocol


def test_an_unknown_gallery_is_refused(table):
    with pytest.raises(DataError, match="Unknown gallery 'middle'. Known: left"):
        asked = [Query("a", IDS[0], "1", (IDS[1],), gallery="middle")]
        evaluate_retriever(Oracle(), table, asked, IDS, PROTOCOL, galleries={"left": IDS})


def test_several_texts_of_one_query_are_averaged_after_normalising(table):
    """Texts 1, 1 and 2: the mean vector points at column 1 first; summed without normalising it would not change."""
    asked = [
        Query("a", IDS[0], "5", (IDS[1],), variants=("1", "2", "1")),
        Query("b", IDS[0], "3", (IDS[3],)),
    ]
    result = evaluate_retriever(Oracle(), table, asked, IDS, PROTOCOL)
    assert result.rankings[0].ids[:2] == (IDS[1], IDS[2])
    assert result.rankings[0].scores[:2] == pytest.approx((2 / 5**0.5, 1 / 5**0.5))
    assert result.rankings[1].scores[0] == 1.0 and result.metrics["R@1"] == 1.0


def test_a_subset_is_ranked_and_kept_without_the_reference(table):
    asked = [Query("a", IDS[0], "1", (IDS[1],), subset=(IDS[0], IDS[4], IDS[1]))]
    protocol = Protocol("toy", metrics=("recall", "recall_subset", "cirr_avg"))
    result = evaluate_retriever(Oracle(), table, asked, IDS, protocol)
    assert result.subset_rankings[0].ids == (IDS[1], IDS[4])
    assert result.metrics["Avg"] == 1.0 and result.hit_counts["Rs@1"] == 1
    assert ranking_rows("m", 0, result)[0]["subset_ids"] == [IDS[1], IDS[4]]


def test_every_metric_has_an_interval_on_request(table):
    protocol = Protocol("toy", metrics=("map", "target_recall"), ks=(1, 5))
    plain = evaluate_retriever(Oracle(), table, QUERIES, IDS, protocol)
    asked = evaluate_retriever(Oracle(), table, QUERIES, IDS, protocol, intervals=True)
    assert plain.intervals == {} and set(asked.intervals) == set(asked.metrics)
    assert asked.to_dict()["hits"] == {"mAP@1": 3, "mAP@5": 3, "target R@1": 3, "target R@5": 3}


def test_ranking_alone_needs_no_target(table):
    plan = make_plan([Query("a", IDS[0], "1", ())], IDS, PROTOCOL, scored=False)
    ranked = rank_queries(Oracle(), table, plan, judge=False, top_k=2)
    assert ranked.rankings[0].ids[0] == IDS[1] and ranked.verdicts == ()
