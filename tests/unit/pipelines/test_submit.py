"""`cirray submit`: from rankings or a checkpoint to files that the servers take."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cirray.core.errors import ConfigError, DataError
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.data.config import DataConfig
from cirray.evaluation.report import RANKING_SCHEMA
from cirray.pipelines.evaluation import submit as module
from cirray.pipelines.evaluation.evaluate_config import SubmitRun
from cirray.pipelines.evaluation.submit import run_submit
from cirray.types import Query

REAL = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parents[2] / "fixtures" / "public_annotations.py"))
)
NAMES = tuple(f"test1-{n}-0-img0" for n in range(60))
QUERIES = tuple(Query(str(12063 + 7 * n), NAMES[n], "text", (), subset=NAMES[n : n + 6]) for n in range(5))


@pytest.fixture
def cirr(monkeypatch):
    dataset = CirDataset("cirr", ImageTable(), Protocol("cirr", "test1"), queries=QUERIES, gallery_ids=NAMES)
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    return DataConfig()


def parquet(path, rows):
    full = [
        {
            "row": "m", "seed": 0, "edit": "", "reference_id": "", "modification": "", "target_ids": [], "rank": None,
            "scores": [], "gallery": "", "subset_ids": [], **row,
        }
        for row in rows
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(full, schema=RANKING_SCHEMA), path)
    return str(path)


def test_a_report_s_rankings_become_both_cirr_files(cirr, tmp_path):
    rows = [
        {"query_id": q.query_id, "ids": list(NAMES), "subset_ids": list(q.subset[1:]), "row": name}
        for name in ("image only", "mine")
        for q in QUERIES
    ]
    done = run_submit(SubmitRun(data=cirr, rankings=parquet(tmp_path / "r.parquet", rows), out=str(tmp_path / "out")))
    recall = json.loads((tmp_path / "out" / "cirr-test1-recall.json").read_text())
    subset = json.loads((tmp_path / "out" / "cirr-test1-recall_subset.json").read_text())
    assert recall["12063"] == list(NAMES[1:51]) and subset["12063"] == list(NAMES[1:4])
    assert done.text().count("checked") == 2
    assert (
        "keeps every rule"
        in run_submit(SubmitRun(data=cirr, check=str(tmp_path / "out" / "cirr-test1-recall.json"))).text()
    )


def test_nothing_is_written_when_one_of_the_files_would_break_a_rule(cirr, tmp_path):
    rows = [
        {"query_id": q.query_id, "ids": [*NAMES[:40], *NAMES[:20]], "subset_ids": list(NAMES[1:6])} for q in QUERIES
    ]
    with pytest.raises(DataError, match=r"cirr-test1-recall.json' is no valid cirr-recall submission.*twice"):
        run_submit(SubmitRun(data=cirr, rankings=parquet(tmp_path / "r.parquet", rows), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_rankings_that_lack_a_query_or_are_too_short_are_refused(cirr, tmp_path):
    (tmp_path / "r.json").write_text(json.dumps({q.query_id: list(NAMES) for q in QUERIES[:3]}))
    with pytest.raises(DataError, match="'12084' has no ranked list"):
        run_submit(SubmitRun(data=cirr, rankings=str(tmp_path / "r.json")))


def test_a_checked_file_with_broken_rules_is_one_sentence(tmp_path):
    (tmp_path / "bad.json").write_text(json.dumps({"version": "rc2", "metric": "recall", "12063": ["a.png"]}))
    with pytest.raises(DataError, match=r"bad.json' is no valid cirr-recall submission \(3 broken rules\)"):
        run_submit(SubmitRun(check=str(tmp_path / "bad.json")))


def test_the_ways_in_are_exclusive_and_the_benchmark_is_needed(cirr, tmp_path):
    with pytest.raises(ConfigError, match="needs its benchmark"):
        run_submit(SubmitRun(rankings="x"))
    with pytest.raises(ConfigError, match="texts=REWRITES needs checkpoint"):
        run_submit(SubmitRun(data=cirr, rankings="x", texts="y"))
    with pytest.raises(ConfigError, match="neither was given"):
        run_submit(SubmitRun(data=cirr))
    with pytest.raises(ConfigError, match="features"):
        run_submit(SubmitRun(data=cirr, checkpoint="x"))


def test_a_benchmark_without_a_server_asks_for_the_kind(monkeypatch):
    dataset = CirDataset("mine", ImageTable(), Protocol("mine"), queries=QUERIES, gallery_ids=NAMES)
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    with pytest.raises(ConfigError, match="no known test server. Known: cirr, circo"):
        run_submit(SubmitRun(data=DataConfig(), rankings="x"))


def test_the_official_examples_pass_from_the_command_line(capsys):
    from cirray.cli.main import main

    REAL.load("circo/submission_examples/submission_val.json")
    files = [
        REAL.ROOT / "cirr" / "demo_files" / "test1_pred_ranks_recall.json",
        REAL.ROOT / "circo" / "submission_examples" / "submission_test.json",
    ]
    for file in files:
        assert main(["submit", "--check", str(file)]) == 0
        assert "keeps every rule" in capsys.readouterr().out


def test_the_official_lists_written_again_are_the_official_files(monkeypatch, tmp_path):
    queries, gallery = REAL.cirr_test()
    dataset = CirDataset(
        "cirr", ImageTable(), Protocol("cirr", "test1"), queries=tuple(queries), gallery_ids=tuple(gallery)
    )
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    demo = REAL.ROOT / "cirr" / "demo_files"
    run_submit(
        SubmitRun(
            data=DataConfig(), rankings=str(demo / "test1_pred_ranks_recall.json"), out=str(tmp_path),
            subsets=str(demo / "test1_pred_ranks_recall_subset.json"),
        )
    )  # fmt: skip
    for name in ("recall", "recall_subset"):
        written = (tmp_path / f"cirr-test1-{name}.json").read_bytes()
        assert written == (demo / f"test1_pred_ranks_{name}.json").read_bytes()


def save(folder, name, ids, vectors):
    np.savez(folder / f"{name}.npz", vectors=vectors, ids=np.array(ids))
    return str(folder / f"{name}.npz")


def test_vectors_become_both_cirr_files_and_the_lists_are_those_of_their_cosines(cirr, tmp_path):
    rng = np.random.default_rng(0)
    images, asked = rng.standard_normal((60, 6)), rng.standard_normal((5, 6))
    gallery = save(tmp_path, "gallery", [f"./test1/{name}.png" for name in NAMES], images)
    queries = save(tmp_path, "queries", [query.query_id for query in QUERIES], 9 * asked)
    done = run_submit(SubmitRun(data=cirr, queries=queries, gallery=gallery, out=str(tmp_path / "out")))
    recall = json.loads((tmp_path / "out" / "cirr-test1-recall.json").read_text())
    subset = json.loads((tmp_path / "out" / "cirr-test1-recall_subset.json").read_text())
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    for query, row in zip(QUERIES, asked, strict=True):
        order = [NAMES[at] for at in np.argsort(-(unit @ row)) if NAMES[at] != query.reference_id]
        assert recall[query.query_id] == order[:50]
        assert subset[query.query_id] == [name for name in order if name in query.subset][:3]
    assert "60 image ids have another spelling" in done.text()


def test_lists_of_fifty_without_subsets_give_the_recall_file_and_say_how_to_get_the_other(cirr, tmp_path):
    lists = {query.query_id: [f"{name}.png" for name in NAMES if name not in query.subset][:50] for query in QUERIES}
    (tmp_path / "r.json").write_text(json.dumps(lists))
    done = run_submit(SubmitRun(data=cirr, rankings=str(tmp_path / "r.json"), out=str(tmp_path / "out")))
    assert "cirr-recall-subset: not written, 5 lists end before three images of their subset" in done.text()
    assert "subsets=FILE" in done.text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cirr-test1-recall.json"]
    subsets = {query.query_id: list(query.subset[1:]) for query in QUERIES}
    (tmp_path / "s.json").write_text(json.dumps({"version": "rc2", "metric": "recall_subset", **subsets}))
    run_submit(SubmitRun(data=cirr, rankings=str(tmp_path / "s.json"), out=str(tmp_path / "other")))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["cirr-test1-recall_subset.json"]


@pytest.fixture
def circo(monkeypatch):
    queries = tuple(Query(str(n), str(1000 + n), "text", ()) for n in range(3))
    dataset = CirDataset("circo", ImageTable(), Protocol("CIRCO", "test", reference_rule="keep"), queries=queries)
    monkeypatch.setattr(module, "read_dataset", lambda data, **_: dataset)
    return DataConfig()


@pytest.mark.parametrize("form", ["{:012d}", "{:012d}.jpg", "unlabeled2017/{:012d}.jpg"])
def test_circo_lists_in_other_spellings_become_numbers_and_a_check_names_the_rule_of_circo(circo, tmp_path, form):
    lists = {str(n): [form.format(number) for number in range(n, n + 50)] for n in range(3)}
    (tmp_path / "r.json").write_text(json.dumps(lists))
    done = run_submit(SubmitRun(data=circo, rankings=str(tmp_path / "r.json"), out=str(tmp_path / "out")))
    written = json.loads((tmp_path / "out" / "circo-test-submission.json").read_text())
    assert written["2"] == list(range(2, 52)) and "another spelling" in done.text()
    for run in (SubmitRun(data=circo, check=str(tmp_path / "r.json")), SubmitRun(check=str(tmp_path / "r.json"))):
        with pytest.raises(DataError, match="no valid circo submission.*whole numbers without padding"):
            run_submit(run)
    vectors = save(tmp_path, "g", [form.format(number) for number in range(80)], np.eye(80))
    asked = save(tmp_path, "q", ["0", "1", "2"], np.eye(80)[[7, 8, 9]])
    told = run_submit(SubmitRun(data=circo, queries=asked, gallery=vectors, out=str(tmp_path / "v"))).text()
    assert json.loads((tmp_path / "v" / "circo-test-submission.json").read_text())["1"][0] == 8
    assert "80 images named by the given files are used for it" in told


def test_a_check_with_a_data_set_uses_that_benchmark_s_rules(cirr, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({query.query_id: list(query.subset[1:4]) for query in QUERIES}))
    with pytest.raises(DataError, match="no valid cirr-recall-subset submission"):
        run_submit(SubmitRun(data=cirr, check=str(tmp_path / "s.json")))
    (tmp_path / "n.json").write_text(json.dumps({query.query_id: list(range(50)) for query in QUERIES}))
    with pytest.raises(DataError, match="no valid cirr-recall submission"):
        run_submit(SubmitRun(data=cirr, check=str(tmp_path / "n.json")))


def test_vectors_of_one_side_are_refused(cirr):
    with pytest.raises(ConfigError, match="needed of both sides"):
        run_submit(SubmitRun(data=cirr, queries="q.npy"))
    with pytest.raises(ConfigError, match=r"rankings=FILE and queries=FILE .* was given"):
        run_submit(SubmitRun(data=cirr, queries="q.npy", gallery="g.npy", rankings="r.json"))
