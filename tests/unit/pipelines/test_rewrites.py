"""The rewrite stage without a cluster, and how its texts come into a data set's queries."""

import dataclasses

import pytest
from interrupted import interrupted
from made_artifacts import stage_of

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.generators.rewriters.config import REWRITERS, LanguageConfig
from cirray.pipelines.rewrites import rewrite as stage_module
from cirray.pipelines.rewrites.config import RewriteRun
from cirray.pipelines.rewrites.rewrite import run_rewrite
from cirray.pipelines.rewrites.texts import with_texts
from cirray.triplets.captions import write_captions
from cirray.triplets.rewrites import rejected_rewrites, rewrite_table
from cirray.types import Query

CALLS = []


class CountedConfig(LanguageConfig):
    """Settings of the rewriter of these tests."""

    source: str = ""
    prompt: str = "cirr/1"


class Counted:
    """Says both texts in capitals; remembers what it was asked; has no answer to 'nothing'."""

    def __init__(self, settings, setup):
        self.digest = f"counted/{settings.new_tokens}"

    def rewrite(self, asks):
        CALLS.append([(ask.caption, ask.modification) for ask in asks])
        return ["" if ask.modification == "nothing" else f"{ask.caption} {ask.modification}".upper() for ask in asks]


@pytest.fixture(scope="module", autouse=True)
def registered():
    REWRITERS.register("counted", settings=CountedConfig)(Counted)
    yield
    del REWRITERS._items["counted"], REWRITERS._settings["counted"]


@pytest.fixture
def dataset(monkeypatch):
    queries = (
        Query("q0", "a", "blue", ("b",)), Query("q1", "b", "smaller", ("a",)), Query("q2", "a", "blue", ("c",)),
        Query("q3", "c", "no caption", ("a",)), Query("q4", "b", "nothing", ("a",)),
        Query("q5", "a", "x and y", ("b",), variants=("x and y", "y and x")),
    )  # fmt: skip
    made = CirDataset("d", ImageTable({n: n for n in "abc"}), Protocol("d"), queries=queries, gallery_ids=("a", "b"))
    monkeypatch.setattr(stage_module, "open_dataset", lambda data: made)
    return made


@pytest.fixture
def captions(tmp_path):
    return write(tmp_path / "captions", {"a": "a red star", "b": "a square"})


def write(folder, texts):
    stage = stage_of(str(folder), "captions", {})
    row = {"captioner": "x", "key": "k"}
    write_captions(
        stage.work_uri, "part-0", [{**row, "image_id": name, "caption": text} for name, text in texts.items()]
    )
    stage.publish({})
    return str(folder)


def run_of(captions, out, rewriter="counted", **fields):
    """A run; a mapping says settings of the counted rewriter."""
    rewriter = rewriter if isinstance(rewriter, str) else {"kind": "counted", "settings": rewriter}
    tree = {"captions": [captions], "rewriter": rewriter, "part_rows": 3, "ray": {"enabled": False}, **fields}
    return validate(RewriteRun, {**tree, "out": str(out)})


def test_every_text_of_every_query_is_rewritten_or_rejected_with_a_reason(dataset, captions, tmp_path):
    CALLS.clear()
    manifest = run_rewrite(run_of(captions, tmp_path / "r", {"prompt": "plain/1"}))
    assert manifest.kind == "rewrites" and manifest.counts == {"queries": 6, "texts": 5, "rejected": 2}
    rows = rewrite_table(str(tmp_path / "r")).to_pylist()
    assert [(row["query_id"], row["text"]) for row in rows] == [
        ("q0", "A RED STAR BLUE"), ("q1", "A SQUARE SMALLER"), ("q2", "A RED STAR BLUE"),
        ("q5", "A RED STAR X AND Y"), ("q5", "A RED STAR Y AND X"),
    ]  # fmt: skip
    assert rows[0]["prompt_version"].startswith("plain/1#") and rows[0]["rewriter"] == "counted/80"
    reasons = rejected_rewrites(str(tmp_path / "r")).column("reason").to_pylist()
    assert reasons == ["the reference has no caption", "the rewriter wrote nothing"]
    assert manifest.extra["rewriter"] == "counted/80" and manifest.extra["prompt_version"] == rows[0]["prompt_version"]
    assert sum(map(len, CALLS)) == manifest.extra["asked"] == 5  # q0 and q2 ask the same


def test_cached_captions_and_answers_give_no_model_call(dataset, captions, tmp_path, monkeypatch):
    CALLS.clear()
    run = run_of(captions, tmp_path / "first")
    first, asked = run_rewrite(run), len(CALLS)
    assert run_rewrite(run) == first and len(CALLS) == asked > 0
    dataset = dataclasses.replace(dataset, queries=dataset.queries[:3])
    monkeypatch.setattr(stage_module, "open_dataset", lambda data: dataset)
    again = run_rewrite(run_of(captions, tmp_path / "second", reuse=[str(tmp_path / "first")]))
    assert len(CALLS) == asked and again.extra["asked"] == 0 and again.counts["texts"] == 3
    for number, change in enumerate(({"new_tokens": 7}, {"prompt": "plain/1"})):
        other = run_rewrite(run_of(captions, tmp_path / f"o{number}", change, reuse=[str(tmp_path / "first")]))
        assert other.extra["asked"] == 2
    told = write(tmp_path / "told", {"a": "a blue star", "b": "a square"})
    assert run_rewrite(run_of(told, tmp_path / "t", reuse=[str(tmp_path / "first")])).extra["asked"] == 1


@pytest.mark.parametrize("part_rows", [3, 20])
def test_a_stopped_run_asks_nothing_again_that_was_answered(dataset, captions, tmp_path, monkeypatch, part_rows):
    monkeypatch.setattr("cirray.pipelines.cluster.answers._FIRST_PIECE", 2)
    fields = {"part_rows": part_rows}
    whole = run_rewrite(run_of(captions, tmp_path / "whole", **fields))
    with interrupted(Counted, "rewrite", CALLS, after=1):
        run_rewrite(run_of(captions, tmp_path / "r", **fields))
    assert run_rewrite(run_of(captions, tmp_path / "r", **fields)).digest == whole.digest
    assert sorted(ask for call in CALLS for ask in call) == sorted(
        [("a red star", "blue"), ("a square", "smaller"), ("a square", "nothing"), ("a red star", "x and y"),
         ("a red star", "y and x")]
    )  # fmt: skip


def test_queries_search_with_their_new_texts_and_a_rejected_one_keeps_its_own(dataset, captions, tmp_path):
    run_rewrite(run_of(captions, tmp_path / "r", {"prompt": "plain/1"}))
    found, record = with_texts(dataset, str(tmp_path / "r"))
    texts = {query.query_id: query.modification for query in found.queries}
    assert texts["q0"] == "A RED STAR BLUE" and texts["q3"] == "no caption" and texts["q4"] == "nothing"
    assert found.queries[5].variants == ("A RED STAR X AND Y", "A RED STAR Y AND X")
    assert [q.target_ids for q in found.queries] == [q.target_ids for q in dataset.queries]
    assert record["kept"] == 2 and record["rewriter"] == "counted/80"
    assert f"rewritten by {record['prompt_version']} but 2 of 6" in found.protocol.describe()


def test_texts_of_other_queries_are_refused(dataset, captions, tmp_path):
    run_rewrite(run_of(captions, tmp_path / "r"))
    for change in ({"query_id": "q9"}, {"modification": "green"}, {"reference_id": "b"}):
        queries = (dataclasses.replace(dataset.queries[0], **change),)
        with pytest.raises(DataError, match="is not in the rewrites .* other queries or another caption rule"):
            with_texts(dataclasses.replace(dataset, queries=queries), str(tmp_path / "r"))
    with pytest.raises(ArtifactError, match="'captions'; 'rewrites' is needed"):
        with_texts(dataset, captions)


def test_what_cannot_be_rewritten_is_refused_before_anything_is_written(dataset, captions, tmp_path):
    strange = write(tmp_path / "strange", {"z": "a dog"})
    for fields, error, words in (
        ({"rewriter": "countd"}, ConfigError, "Unknown rewriter 'countd'. Did you mean 'counted'"),
        ({"rewriter": {"prompt": "plain/7"}}, ConfigError, "Unknown rewrite prompt"),
        ({"captions": strange}, DataError, "No reference of the 6 queries, e.g. 'a', has a caption"),
        ({"captions": str(tmp_path / "none")}, ArtifactError, "does not exist"),
        ({"rewriter": "language"}, ConfigError, "rewriter.settings.source"),
    ):
        with pytest.raises(error, match=words):
            run_rewrite(run_of(fields.pop("captions", captions), tmp_path / "r", **fields))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["captions", "strange"]
