"""`cirray score`: figures without a model, from vectors, lists and submission files."""

import json
import logging
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.config import load_config
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.evaluation.chunked import Settings
from cirray.evaluation.rankings import read_rankings
from cirray.pipelines.evaluation import score as module
from cirray.pipelines.evaluation.config import ScoreRun
from cirray.pipelines.evaluation.score import run_score
from cirray.types import Query

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).resolve().parents[2] / "fixtures" / "benchmarks.py")))
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
REAL = SimpleNamespace(**runpy.run_path(str(FIXTURES / "public_annotations.py")))
NAIVE = SimpleNamespace(**runpy.run_path(str(FIXTURES / "naive_metrics.py")))
IDS = tuple(f"{n:012d}" for n in range(30))


def query(at, targets=1):
    picked = [IDS[(7 * at + 3 * step) % 30] for step in range(6)]
    return Query(str(at), picked[0], "text", tuple(picked[1 : 1 + targets]), subset=tuple(picked))


@pytest.fixture
def cirr(monkeypatch):
    protocol = Protocol("cirr", "val", metrics=("recall", "recall_subset", "cirr_avg"), ks=(1, 5, 10))
    dataset = CirDataset(
        "cirr", ImageTable(dict.fromkeys(IDS, "absent.png")), protocol,
        queries=tuple(query(at) for at in range(8)), gallery_ids=IDS,
    )  # fmt: skip
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    return dataset


def save(folder, name, ids, vectors):
    np.save(folder / f"{name}.npy", vectors)
    (folder / f"{name}.ids.json").write_text(json.dumps(list(ids)))
    return str(folder / f"{name}.npy")


@pytest.fixture
def vectors(tmp_path, cirr):
    rng = np.random.default_rng(0)
    gallery = rng.standard_normal((30, 2, 5)).astype(np.float16)
    queries = rng.standard_normal((8, 5)).astype(np.float32)
    asked = save(tmp_path, "queries", [q.query_id for q in cirr.queries], queries)
    return ScoreRun(queries=asked, gallery=(save(tmp_path, "gallery", IDS, gallery),)), queries, gallery


def write(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def test_saved_vectors_give_the_figures_of_a_naive_loop(vectors, cirr):
    run, queries, gallery = vectors
    scored = run_score(run)
    unit = gallery.astype(np.float64) / np.linalg.norm(gallery.astype(np.float64), axis=2, keepdims=True)
    places, inner = [], []
    for asked, query_D in zip(cirr.queries, queries.astype(np.float64), strict=True):
        row = (unit @ (query_D / np.linalg.norm(query_D))).max(axis=1)
        places.append(NAIVE.first_hit(row, list(IDS), asked.target_ids, asked.reference_id, True))
        inner.append(NAIVE.subset_order(row, list(IDS), asked, {}).index(asked.target_ids[0]))
    expected = {f"R@{k}": NAIVE.count_hits(places, k) for k in (1, 5, 10)}
    assert scored.result.hit_counts == expected | {f"Rs@{k}": NAIVE.count_hits(inner, k) for k in (1, 2, 3)}
    assert "cosines" not in scored.text() and "own reference removed" in scored.text() and "Rs@1" in scored.text()


def test_a_written_report_scored_again_gives_the_same_figures(vectors, tmp_path):
    run, *_ = vectors
    first = run_score(run.model_copy(update={"out": str(tmp_path / "report")}))
    again = run_score(ScoreRun(ranks=str(tmp_path / "report")))
    assert again.result.hit_counts == first.result.hit_counts and again.notes == ()
    assert "order as listed" in again.result.protocol
    assert read_rankings(str(tmp_path / "report")).rows["0"]["rank"] == int(first.result.ranks[0]) + 1
    assert run_score(run.model_copy(update={"out": str(tmp_path / "report")})).result.metrics == first.result.metrics


def test_the_reference_rule_can_be_set(vectors):
    run, *_ = vectors
    kept = run_score(run.model_copy(update={"reference_rule": "keep"})).result
    assert "own reference kept" in kept.protocol
    assert all(len(ranking.ids) == 30 for ranking in kept.rankings)


def test_intervals_on_request(vectors):
    run, *_ = vectors
    assert set(run_score(run.model_copy(update={"intervals": True})).result.intervals) >= {"Rs@1", "Avg", "R@1"}


def test_lists_without_subsets_give_recall_and_say_what_is_left_out(cirr, tmp_path):
    lists = {q.query_id: [q.target_ids[0]] for q in cirr.queries}
    lists["0"] = [next(name for name in IDS if name not in cirr.queries[0].subset)]
    scored = run_score(ScoreRun(ranks=write(tmp_path / "r.json", lists)))
    assert scored.result.metrics == {"R@1": 7 / 8, "R@5": 7 / 8, "R@10": 7 / 8}
    assert "Left out without a subset ranking (subsets=FILE): recall_subset, cirr_avg." in scored.notes
    assert any("shortest list holds 1 images" in note for note in scored.notes)


def test_a_recall_subset_file_gives_the_subset_figures_only(cirr, tmp_path):
    lists = {q.query_id: [n for n in q.subset if n != q.reference_id][:3] for q in cirr.queries}
    payload = {"version": "rc2", "metric": "recall_subset", **lists}
    scored = run_score(ScoreRun(ranks=write(tmp_path / "s.json", payload)))
    assert scored.result.metrics == {"Rs@1": 1.0, "Rs@2": 1.0, "Rs@3": 1.0}
    assert "Left out without lists of the gallery (ranks=FILE): recall, cirr_avg." in scored.notes
    both = run_score(
        ScoreRun(
            ranks=write(tmp_path / "r.json", {q.query_id: [q.target_ids[0]] for q in cirr.queries}),
            subsets=write(tmp_path / "s.json", payload),
        )
    )
    assert both.result.metrics["Avg"] == 1.0


def test_numbers_that_lost_their_padding_are_the_gallery_s_ids(cirr, tmp_path):
    lists = {q.query_id: [int(q.target_ids[0])] for q in cirr.queries}
    assert run_score(ScoreRun(ranks=write(tmp_path / "r.json", lists))).result.metrics["R@1"] == 1.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lists: lists.pop("3"), "no list for 1 of 8 queries; the first is '3'"),
        (lambda lists: lists.update({"99": [IDS[0]]}), "1 lists of unknown queries; the first is '99'"),
        (lambda lists: lists["2"].append(lists["2"][0]), "query '2' holds '0000000000.*twice"),
        (lambda lists: lists["2"].append("cat"), "query '2' holds 'cat', which is not among the 30"),
        (lambda lists: lists.update({"2": "cat"}), "query '2' holds 'cat'; a list"),
        (lambda lists: lists.update({"2": [1.5]}), "a list of image ids is needed"),
    ],
)
def test_lists_that_do_not_fit_the_benchmark_are_refused_by_name(cirr, tmp_path, change, sentence):
    lists = {q.query_id: list(IDS[:12]) for q in cirr.queries}
    change(lists)
    with pytest.raises(DataError, match=sentence):
        run_score(ScoreRun(ranks=write(tmp_path / "r.json", lists)))


def test_a_subset_ranking_with_a_stranger_is_refused(cirr, tmp_path):
    lists = {q.query_id: [n for n in IDS if n not in q.subset][:1] for q in cirr.queries}
    with pytest.raises(DataError, match="in the subset of query '0'"):
        run_score(ScoreRun(subsets=write(tmp_path / "s.json", lists)))


def test_vectors_that_do_not_fit_are_refused_by_name(vectors, tmp_path, cirr):
    run, queries, gallery = vectors
    broken = gallery.copy()
    broken[4, 1, 2] = np.nan
    with pytest.raises(DataError, match=f"gallery image '{IDS[4]}' holds NaN"):
        run_score(run.model_copy(update={"gallery": (save(tmp_path, "broken", IDS, broken),)}))
    with pytest.raises(DataError, match="do not fit queries of width 5"):
        run_score(run.model_copy(update={"gallery": (save(tmp_path, "thin", IDS, gallery[..., :4]),)}))
    with pytest.raises(DataError, match="1 of 30 gallery images have no vector"):
        run_score(run.model_copy(update={"gallery": (save(tmp_path, "few", IDS[:29], gallery[:29]),)}))
    with pytest.raises(DataError, match="29 vectors for 30 ids"):
        run_score(run.model_copy(update={"gallery": (save(tmp_path, "odd", IDS, gallery[:29]),)}))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "neither was given"),
        ({"ranks": "a", "queries": "b", "gallery": ["c"]}, "both was given"),
        ({"queries": "b"}, "needed of both sides"),
        ({"queries": "b", "gallery": ["c", "d"], "gallery_ids": ["e"]}, "1 files for 2"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(ScoreRun, fields)


def test_the_circo_example_file_scores_as_the_naive_twin_says(monkeypatch):
    queries, _ = REAL.circo("val")
    protocol = Protocol("circo", "val", reference_rule="keep", metrics=("map", "target_recall"), ks=(5, 10, 25, 50))
    dataset = CirDataset(
        "circo", ImageTable(), protocol, queries=tuple(queries), gallery_ids=tuple(REAL.circo_images())
    )
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    file = REAL.ROOT / "circo" / "submission_examples" / "submission_val.json"
    scored = run_score(ScoreRun(ranks=str(file)))
    lists = {key: [str(item) for item in value] for key, value in json.loads(file.read_text()).items()}
    for k in protocol.ks:
        found = [NAIVE.circo_ap(lists[q.query_id], q.target_ids, k) for q in queries]
        assert scored.result.metrics[f"mAP@{k}"] == pytest.approx(sum(value for value, _ in found) / 220, abs=1e-12)
        assert scored.result.hit_counts[f"mAP@{k}"] == sum(hit for _, hit in found)
        assert scored.result.hit_counts[f"target R@{k}"] == sum(
            q.target_ids[0] in lists[q.query_id][:k] for q in queries
        )


def test_a_test_split_has_no_figures(monkeypatch, tmp_path):
    queries, gallery = REAL.cirr_test()
    dataset = CirDataset(
        "cirr", ImageTable(), Protocol("cirr", "test1"), queries=tuple(queries), gallery_ids=tuple(gallery)
    )
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    demo = REAL.ROOT / "cirr" / "demo_files" / "test1_pred_ranks_recall.json"
    with pytest.raises(DataError, match=r"has no target.*cirray submit"):
        run_score(ScoreRun(ranks=str(demo)))


def test_a_benchmark_whose_image_list_is_missing_can_still_be_scored_and_says_so(monkeypatch, tmp_path):
    queries, _ = REAL.circo("val")
    dataset = CirDataset("circo", ImageTable(), Protocol("circo", metrics=("map",), ks=(5,)), queries=tuple(queries))
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    file = REAL.ROOT / "circo" / "submission_examples" / "submission_val.json"
    scored = run_score(ScoreRun(ranks=str(file)))
    assert "gallery is unknown" in scored.notes[0] and "mAP@5" in scored.result.metrics
    ids = REAL.circo_images()
    rng = np.random.default_rng(0)
    asked = save(tmp_path, "queries", [q.query_id for q in queries], rng.standard_normal((220, 4)).astype(np.float32))
    run = ScoreRun(queries=asked, gallery=(save(tmp_path, "g", ids, rng.standard_normal((len(ids), 4))),))
    assert f"the {len(ids):,} images named by the given files" in run_score(run).text()


def benchmark(name, root, **fields):
    return DataConfig.model_validate({"format": name, name: {"root": str(root), **fields}})


PADDED = [lambda n: f"{n:012d}", lambda n: f"{n:012d}.jpg", lambda n: f"unlabeled2017/{n:012d}.jpg", lambda n: n]


@pytest.mark.parametrize("spell", PADDED)
@pytest.mark.parametrize("info", [True, False])
def test_circo_s_ids_are_understood_in_every_spelling_with_and_without_the_image_list(tmp_path, spell, info):
    data = benchmark("circo", MADE.write_circo(tmp_path, info))
    lists = {"0": [spell(n) for n in (2, 121506, 3)], "1": [spell(n) for n in (4, 5, 1)]}
    scored = run_score(ScoreRun(data=data, ranks=write(tmp_path / "r.json", lists)))
    assert scored.result.metrics["mAP@5"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert ("another spelling" in scored.text()) == isinstance(spell(1), str)
    ids = [spell(n) for n in (1, 2, 3, 4, 5, 121506)]
    gallery = save(tmp_path, "g", ids, np.eye(6, dtype=np.float32))
    queries = save(tmp_path, "q", ["0", "1"], np.eye(6, dtype=np.float32)[[1, 4]])
    by_vectors = run_score(ScoreRun(data=data, queries=queries, gallery=gallery))
    assert by_vectors.result.metrics["target R@5"] == 1.0 and by_vectors.result.rankings[0].ids[0] == "2"


def test_circo_s_lists_of_words_are_refused_without_the_image_list(tmp_path):
    data = benchmark("circo", MADE.write_circo(tmp_path, info=False))
    with pytest.raises(DataError, match="are whole numbers, and 'cat' is none"):
        run_score(ScoreRun(data=data, ranks=write(tmp_path / "r.json", {"0": [2, "cat"], "1": [5]})))


def test_other_benchmarks_ids_with_folder_and_suffix_are_understood(tmp_path):
    data = benchmark("cirr", MADE.write_cirr(tmp_path / "cirr"))
    names = MADE.cirr_names("val")
    lists = {str(pair): [f"./dev/{name}.png" for name in names] for pair in (12, 40, 41)}
    scored = run_score(ScoreRun(data=data, ranks=write(tmp_path / "r.json", lists)))
    assert scored.result.metrics["R@5"] == 1.0 and "'./dev/dev-0-0-img0.png' as 'dev-0-0-img0'" in scored.text()
    data = benchmark("fashioniq", MADE.write_fashioniq(tmp_path / "fiq"), category="dress")
    lists = {f"dress-val-{row}": [f"dress-val-{n}.jpg" for n in (1, 3, 0, 2)] for row in range(2)}
    assert run_score(ScoreRun(data=data, ranks=write(tmp_path / "f.json", lists))).result.metrics["Avg"] == 1.0


def fashioniq_files(tmp_path):
    """A file of vectors for each category; `shared` is in two of them."""
    data = benchmark("fashioniq", MADE.write_fashioniq(tmp_path / "fiq"))
    dataset = read_dataset(data)
    rng, files = np.random.default_rng(0), []
    for name, ids in dataset.galleries.items():
        files.append(save(tmp_path, name, [f"{image}.png" for image in ids], rng.standard_normal((len(ids), 4))))
    queries = [query.query_id for query in dataset.queries]
    return data, save(tmp_path, "queries", queries, rng.standard_normal((len(queries), 4))), files


def test_fashioniq_may_have_a_file_of_vectors_for_each_category(tmp_path, monkeypatch):
    data, queries, files = fashioniq_files(tmp_path)
    monkeypatch.setattr("ray.init", lambda **fields: pytest.fail("so few vectors need no cluster"))
    apart = run_score(ScoreRun(data=data, queries=queries, gallery=files)).result
    assert apart.query_count == 6 and {len(r.ids) for r in apart.rankings} == {4, 5}


def test_an_image_in_two_files_is_told_with_advice_before_a_cluster_starts(tmp_path, monkeypatch):
    data, queries, files = fashioniq_files(tmp_path)
    monkeypatch.setattr("ray.init", lambda **fields: pytest.fail("a cluster was started"))
    both = save(tmp_path, "both", [f"dress-val-{n}" for n in range(4)], np.ones((4, 4)))
    advice = "dress.npy' and in .*both.npy'. Give every image once, or one file for each gallery that holds all"
    with pytest.raises(DataError, match=f"'dress-val-0' is in .*{advice}"):
        run_score(ScoreRun(data=data, queries=queries, gallery=(*files, both)))


def test_a_place_that_is_taken_is_told_before_the_work(vectors, tmp_path, monkeypatch):
    run, *_ = vectors
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(module, "rank_vectors", lambda *args, **fields: pytest.fail("worked first"))
    with pytest.raises(ArtifactError, match="exists but is no artifact"):
        run_score(run.model_copy(update={"out": str(tmp_path / "mine")}))


def test_work_that_fails_leaves_nothing_at_its_place(vectors, tmp_path):
    run, _, gallery = vectors
    few = save(tmp_path, "few", IDS[:29], gallery[:29])
    with pytest.raises(DataError):
        run_score(run.model_copy(update={"gallery": (few,), "out": str(tmp_path / "report")}))
    assert not list(tmp_path.glob("report*"))


def test_scoring_says_nothing_about_training_triplets(tmp_path, caplog):
    data = benchmark("fashioniq", MADE.write_fashioniq(tmp_path / "fiq"), category="dress")
    lists = {f"dress-val-{row}": ["dress-val-1", "dress-val-3"] for row in range(2)}
    with caplog.at_level("INFO", logger="cirray"):
        logging.getLogger("cirray").propagate = True
        run_score(ScoreRun(data=data, ranks=write(tmp_path / "f.json", lists)))
        told = caplog.text
        read_dataset(data)
    assert "training texts" not in told and "empty caption" in told and "training texts" in caplog.text


def test_settings_of_python_score_cosines_as_the_verb_does():
    assert Settings().normalize is ScoreRun.model_fields["normalize"].default is True
