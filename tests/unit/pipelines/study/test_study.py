"""A study: references, variables and shared stages, a tiny one from end to end, and what it refuses."""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_artifacts import stage_of

from cirray.cli.main import main
from cirray.cli.study import find, show
from cirray.core.artifacts import read_manifest
from cirray.core.config import load_config, validate
from cirray.core.errors import ConfigError
from cirray.evaluation.study import Curve
from cirray.pipelines.study import report as study_report
from cirray.pipelines.study.config import CurveSpec, StudyRun
from cirray.pipelines.study.graph import Graph, references, variables
from cirray.pipelines.study.report import curve_verdicts
from cirray.pipelines.study.run import Ledger, run_study, study_nodes
from cirray.pipelines.training.config import TrainRun
from cirray.triplets.captions import write_captions

ROOT = Path(__file__).resolve().parents[4]
SHIPPED = ROOT / "jobs" / "configs" / "shapes" / "study.yaml"
TINY = runpy.run_path(str(ROOT / "tests" / "fixtures" / "tiny_training.py"))


def write_references(folder, images):
    """A captions artifact that says the same of every image."""
    stage = stage_of(str(folder), "captions", {})
    row = {"captioner": "x", "caption": "a large red star in the top left"}
    write_captions(stage.work_uri, "part-0", [{**row, "image_id": name, "key": name} for name in images])
    stage.publish({})
    return str(folder)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    TINY["make_towers"](root / "towers")
    captions = write_references(root / "captions", [f"gal-{family:05d}-0" for family in range(4)])
    sizes = {"labelled_families": 20, "heldout_families": 2, "pool_families": 0, "gallery_references": 4}
    world, plain = {"data": {"folder": {"root": "@world"}}}, {"objective": "finetune"}
    training = {"steps": 4, "batch": 8, "log_every": 2, "seed": "$seed"}
    tree = {
        "root": str(root / "runs"), "seeds": [0, 1], "ray": False, "data": {"folder": {"root": "@world"}},
        "judge": "@world",
        "variables": {"labels": 40, "width": 8},
        "templates": {"train": {
            "data": {"folder": {"root": "@world"}}, "features": ["@features"], "towers": str(root / "towers"),
            "init": "", "reverse_texts": [], "labels": "$labels", "training": training, "validation": {"queries": 0},
            "encoder": {"settings": {"qformer": {"width": 16, "heads": 2, "queries": 2, "intermediate": 32},
                                     "embed_dim": "$width"}},
        }},
        "stages": {
            "world": {"verb": "world", "fields": {"shapes": {**sizes, "seed": "$seed"}}},
            "features": {"verb": "embed", "fields": {**world, "tower": str(root / "towers")}},
            "plain": {"verb": "finetune", "like": "train", "fields": {"training": plain}},
            "longer": {"verb": "finetune", "like": "train", "fields": {"training": {**plain, "steps": 6}}},
            "index": {"verb": "index", "fields": {**world, "checkpoint": "@longer", "features": ["@features"]}},
            "spoken": {"verb": "rewrite", "fields": {**world, "captions": [captions], "rewriter": "join"}},
        },
        "table": {
            "plain": {"stage": "plain", "source": "paper"}, "spoken": {"stage": "plain", "rewrites": "@spoken"},
            "other": {"stage": "longer", "labelled": False, "index": "index", "shapes": 4},
        },
        "claims": [
            {"text": "longer is better", "row": "other", "over": ["plain"]},
            {"text": "the loss is above nothing", "row": "longer", "metric": "loss", "least": 0.0},
            {"text": "it is there", "row": "plain", "least": -1},
        ],
        "curves": {"labels": {"variable": "labels", "values": [16, 40], "rows": ["plain"]}},
        "curve": ["labels"],
    }  # fmt: skip
    return validate(StudyRun, tree)


def test_references_and_variables_are_found_anywhere():
    tree = {"a": ["@one/part", {"b": "$two"}], "c": "@three", "d": "$seed", "e": "plain"}
    assert references(tree) == ["one", "three"] and variables(tree) == ["two"]


def test_text_fields_of_a_stage_take_their_characters_as_typed_and_numbers_are_numbers(tmp_path):
    """Quotes were needed for `012`, which was read as a number before anybody knew whose field it is."""
    path = tmp_path / "study.yaml"
    path.write_text("""
variables: {tag: 007}
templates: {texts: {source: 012, weight: 1e-1}}
stages:
  typed: {verb: generate, like: texts, fields: {seed: 7, features: [no, 0x1f], split: null}}
  given: {verb: generate, like: texts, fields: {source: $tag, judge: "@typed/1e5"}}
""")
    decoding = "generator.settings.decoding"
    words = ["stages.given.fields.split=# 1", f"stages.given.fields.{decoding}={{repetition_penalty: 1e1}}"]
    graph = Graph(load_config(StudyRun, path, words), 0, find)
    typed, given = (graph.nodes[graph.add(name)].config for name in ("typed", "given"))
    assert (typed.source, typed.weight, typed.seed, typed.split) == ("012", 0.1, 7, "null")
    assert typed.features == ("no", "0x1f")
    assert (given.source, given.split, given.generator.settings.decoding.repetition_penalty) == ("007", "# 1", 10.0)
    assert given.judge.endswith("/typed/1e5") and graph.reads("given")[0] == "typed"


def test_a_printed_study_is_read_as_the_same_study(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("stages: {a: {verb: mine, fields: {out: 1e5, parts: [07], x: null, y: true, z: 0.10, n: 3}}}\n")
    run = load_config(StudyRun, path)
    (tmp_path / "again.yaml").write_text(run.to_yaml())
    again = load_config(StudyRun, tmp_path / "again.yaml")
    assert again.to_dict() == run.to_dict() and again.identity() == run.identity()
    assert run.to_dict()["stages"]["a"]["fields"] == {
        "out": "1e5", "parts": ["07"], "x": None, "y": True, "z": "0.10", "n": 3
    }  # fmt: skip


def test_a_stage_is_named_by_the_variables_on_its_way_and_shared_where_none_differs(study):
    graph = Graph(study, 0, find)
    assert graph.add("plain", {"labels": 40}) == "plain" and graph.add("plain", {"labels": 16}) == "plain@labels=16"
    assert sorted(graph.nodes) == ["features", "plain", "plain@labels=16", "world"]
    config = graph.nodes["plain@labels=16"].config
    assert config.labels == 16 and config.data.folder.root.endswith("seed-0/world") and not config.ray.enabled
    assert graph.nodes["features"].after == ("world",)


def test_a_curve_sets_other_variables_everywhere_or_at_single_values():
    curve = CurveSpec(variable="labels", values=(100, 8000), rows=("plain",), at={"width": 4}, where={"100": {"b": 9}})
    assert curve.assignment(100) == {"labels": 100, "width": 4, "b": 9}
    assert curve.assignment(8000) == {"labels": 8000, "width": 4}
    assert set(curve.names()) == {"labels", "width", "b"}


def test_claims_of_a_curve_are_judged_at_its_values():
    curve = Curve(
        "t", "labels", "R@1", {"new": ((1, (0.5, 0.6)), (2, (0.7, 0.8))), "old": ((1, (0.4, 0.4)), (2, (0.7, 0.9)))}
    )
    claims = [{"text": "higher", "row": "new", "over": "old"}, {"text": "peak", "row": "new", "best": 1}]
    spec = {"variable": "labels", "values": [1, 2], "rows": ["new", "old"], "claims": claims}
    table = {name: {"stage": "s"} for name in ("new", "old")}
    stages = {"s": {"verb": "mine"}}
    run = validate(StudyRun, {"variables": {"labels": 1}, "stages": stages, "table": table, "curves": {"c": spec}})
    found = list(curve_verdicts(run, {"c": curve}))
    assert [(item.word, item.row, item.over) for item in found] == [
        ("confirmed", "new, labels 1", "old, labels 1"),
        ("refuted", "new, labels 2", "old, labels 2"),
        ("refuted", "new, labels 1", "new, labels 2"),
    ]
    assert found[0].differences == pytest.approx((0.1, 0.2))


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"row": "absent", "over": "new"}, "rows of the curve: new"),
        ({"row": "new", "best": 3}, "best at 3; values of the curve: 1, 2"),
        ({"row": "new"}, "`over`"),
    ],
)
def test_a_claim_of_a_curve_that_cannot_be_judged_is_refused(claim, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(CurveSpec, {"variable": "x", "values": [1, 2], "rows": ["new"], "claims": [{"text": "t", **claim}]})


def test_a_tiny_study_runs_once_and_its_report_holds_table_claims_and_curve(study, monkeypatch):
    manifest = run_study(study, find)
    table = manifest.extra["table"]
    assert "plain" in table and "image only" in table and "longer is better" in table and "seeds 0, 1" in table
    out = Path(manifest.extra["out"])
    found = json.loads((out / "metrics.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["plain"]["labels"] == 40 and rows["other"]["labels"] == 0
    assert len(rows["plain"]["metrics"]["R@1"]) == 2 and all(seconds > 0 for seconds in rows["plain"]["seconds"])
    points = dict(found["curves"][0]["points"]["plain"])
    assert points[40.0] == rows["plain"]["metrics"]["R@1"] and list(points) == [16.0, 40.0]
    assert "R@1 over labels" in table
    ((title, lines),) = found["tables"].items()
    assert title.startswith("other: percent of the first ten answers") and title in table
    shares = {line[0]: line[1:] for line in lines[1:]}
    assert {"a text alone", "a box around the object", "not this text (less is better)"} < set(shares)
    seeds = [read_manifest(item).extra["shapes"]["other"] for item in sorted(Path(study.root).glob("seed-*/score-*"))
             if "shapes" in read_manifest(item).extra]  # fmt: skip
    mean = np.mean([np.mean(row["with"]) for rows in seeds for row in rows if row["name"] == "a picture alone"])
    assert len(seeds) == 2 and shares["a picture alone"][2].startswith(f"{100 * mean:.1f} ± ")
    assert [item["verdict"] for item in found["claims"][1:]] == ["confirmed", "confirmed"]
    assert found["claims"][0]["verdict"] in ("confirmed", "refuted", "not settled", "no difference")
    page = (out / "report.html").read_text()
    assert title in page and "<svg" in page and "Expected and measured" in page and "<script" not in page
    for link in ("../seed-0/", "../seed-1/"):
        place = page.split(f'href="{link}')[1].split('"')[0]
        assert (out / link / place).resolve().is_file()
    assert (out / "R-1-over-labels.png").stat().st_size > 1000
    before = {path: path.stat().st_mtime_ns for path in Path(study.root).rglob("manifest.json")}
    read = []
    monkeypatch.setattr(
        study_report, "read_manifest", lambda uri, *kind: read.append((uri, kind)) or read_manifest(uri, *kind)
    )
    again = run_study(study, find)
    reports = [uri for uri, kind in read if kind == ("report",)]
    assert again.extra["table"] == table and len(reports) == len(set(reports)) > 2
    assert {path: path.stat().st_mtime_ns for path in Path(study.root).rglob("manifest.json")} == before


def test_a_finished_stage_is_looked_at_again_when_an_artifact_it_reads_has_changed(study, tmp_path):
    """A world of other content under the same name: the configuration of the stage that reads it is the same."""
    run = validate(StudyRun, {**study.to_dict(), "root": str(tmp_path / "again"), "out": ""})
    graph = Graph(run, 0, find)
    node = graph.nodes[graph.add("features")]
    for place, number in ((node.config.data.folder.root, 1), (node.config.out, 2)):
        publish_number(place, number)
    Ledger(run.root).add([node])
    assert Ledger(run.root).has(node)
    shutil.rmtree(node.config.data.folder.root)
    publish_number(node.config.data.folder.root, 3)
    assert not Ledger(run.root).has(node)


def publish_number(place, number):
    """An artifact that holds a number."""
    stage = stage_of(place, "world", {"number": number})
    (stage.local / "number.txt").write_text(str(number))
    stage.publish({})


def test_a_row_with_rewrites_is_scored_on_their_texts_and_not_on_its_own(study):
    run_study(study, find)
    score = read_manifest(next(Path(study.root).glob("seed-0/score-*")))
    rewrites = read_manifest(str(Path(study.root) / "seed-0" / "spoken"))
    assert score.inputs["row_texts spoken"] == rewrites.digest and rewrites.counts["texts"] > 0
    assert score.metrics["spoken"] != score.metrics["plain"]


def test_named_scores_are_found_there_and_other_rows_get_a_place_of_their_own(study, tmp_path):
    tree = {**study.to_dict(), "seeds": [0], "curve": [], "scores": "report", "out": str(tmp_path / "a")}
    told = run_study(validate(StudyRun, tree), find).extra
    assert told["scores"] == f"{study.root}/seed-0/report" and told["search"]["index"].endswith("/seed-0/index")
    assert "index       " in show(read_manifest(tmp_path / "a"))
    other = {**tree, "rows": ["plain"], "claims": [], "out": str(tmp_path / "b")}
    assert run_study(validate(StudyRun, other), find).extra["scores"].startswith(f"{study.root}/seed-0/score-")


def test_a_study_without_a_file_says_how_to_get_one(capsys):
    assert main(["study"]) == 2
    assert "cirray study STUDY.yaml" in capsys.readouterr().err


def test_a_wrong_stage_names_the_files_that_say_it(tmp_path, capsys):
    row = {"plain": {"stage": "plain"}}
    tree = {"stages": {"plain": {"verb": "finetune", "fields": {"init": "", "labls": 3}}}, "table": row}
    (tmp_path / "mine.yaml").write_text(json.dumps(tree))
    words = ["features=[]", "data.folder.root=x", f"root={tmp_path}", "stages.plain.fields.reverse_texts=[]"]
    assert main(["study", str(tmp_path / "mine.yaml"), *words]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/mine.yaml, the command line: Stage 'plain' of the study: stages.plain.fields: Unknown" in said
    assert "'labls'. Did you mean 'labels'" in said


def test_checkpoints_stand_side_by_side_by_a_verb_of_their_own(study, tmp_path, capsys):
    run_study(study, find)
    seed = f"{study.root}/seed-0"
    words = [f"data.folder.root={seed}/world", f"features=[{seed}/features]", f"out={tmp_path}/both"]
    assert main(["compare", *words, f"checkpoints.short={seed}/plain", f"checkpoints.long={seed}/longer"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^image only .*\nshort .*\nlong ", said, re.M) and "Protocol:" in said
    assert (tmp_path / "both" / "report.html").is_file()
    assert main(["compare", *words]) == 2
    assert "checkpoints.NAME=PLACE" in capsys.readouterr().err


def test_the_shipped_study_resolves_whole_with_every_row_and_curve():
    run = load_config(StudyRun, SHIPPED)
    names = [node.name for node in study_nodes(run, find)]
    assert names.index("features") < names.index("labelled") < names.index("checked") < names.index("pretrained")
    graph = Graph(run, 0, find)
    for curve in run.curves.values():
        for value in curve.values:
            for row in curve.rows:
                graph.add(run.table[row].stage, {curve.variable: value})
    assert {row for claim in run.claims for row in (claim.row, *claim.over)} <= set(run.table)
    for node in (node for node in graph.nodes.values() if isinstance(node.config, TrainRun)):
        given = node.config.encoder.settings.given()
        assert not (node.config.init and given), f"{node.name}: a field of encoder has no effect, or must not differ"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": ["plan"]}, "rows: Unknown name 'plan'. Did you mean 'plain'? Known: other, plain, spoken"),
        ({"seeds": []}, "seeds is empty"),
        ({"curve": ["x"]}, "curve: Unknown name 'x'"),
        ({"per_seed": False}, "several seeds need a folder each"),
        ({"generators": ["longer"]}, "generators: Unknown name 'longer'. Known: (none)"),
        ({"claims": [{"text": "t", "row": "othr", "over": ["plain"]}]}, "claims: Unknown name 'othr'. Did you mean"),
        ({"claims": [{"text": "t", "row": "other"}]}, "a claim needs `over`"),
        ({"claims": [{"text": "t", "row": "other", "least": 0.1, "share": 0.5}]}, "`share` is a share of the gain"),
        (
            {"table": {"plain": {"stage": "plain", "index": "world"}}, "claims": [], "curves": {}, "curve": []},
            "no stage of",
        ),
        ({"table": {"plain": {"stage": "plain", "shapes": 9}}, "claims": [], "curves": {}, "curve": []}, "has shapes"),
        ({"scores": "world"}, "scores 'world' is the name of a stage"),
        ({"table": {"plain": {}}}, "a row needs a stage"),
        (
            {"stages": {name: {"verb": "finetune", "like": "tran"} for name in ("plain", "longer", "index")}},
            "Unknown name 'tran'. Did you mean 'train'",
        ),
    ],
)
def test_a_study_that_names_unknown_things_is_refused(study, change, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        validate(StudyRun, {**study.to_dict(), **change})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"verb": "finetun"}, "Stage 'plain' of the study: Unknown verb 'finetun'. Did you mean 'finetune'"),
        (
            {"verb": "finetune", "fields": {"labls": 3}},
            "Stage 'plain' of the study: stages.plain.fields: Unknown config field 'labls'. Did you mean 'labels'",
        ),
        (
            {"verb": "finetune", "like": "wrong"},
            "Stage 'plain' of the study: templates.wrong: Unknown config field in section 'training' 'training.stps'",
        ),
        (
            {"verb": "finetune", "fields": {"init": "@pain"}},
            "Stage 'plain' reads '@pain'. Unknown stage of the study 'pain'. Did you mean 'plain'",
        ),
        (
            {"verb": "finetune", "fields": {"labels": "$lables"}},
            "Stage 'plain' of the study: Unknown variable of the study 'lables'. Did you mean 'labels'",
        ),
        ({"verb": "finetune", "fields": {"init": "@plain"}}, "Stages plain -> plain of the study read each other"),
    ],
)
def test_a_stage_that_cannot_run_is_refused_before_anything_runs(study, spec, words):
    tree = study.to_dict()
    tree["stages"]["plain"] = spec
    tree["templates"]["wrong"] = {"training": {"stps": 3}}
    with pytest.raises(ConfigError, match=re.escape(words)):
        study_nodes(validate(StudyRun, tree), find)
