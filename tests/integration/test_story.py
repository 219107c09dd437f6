"""The whole story in a row on a tiny world: every stage through Ray, killed and resumed, then searched."""

from pathlib import Path

import pytest
import yaml

from cirray.cli.study import find, show
from cirray.cli.verb import verb
from cirray.core.artifacts import read_manifest
from cirray.core.config import load_config
from cirray.core.trees import merged
from cirray.pipelines.search.config import SearchRun
from cirray.pipelines.search.search import run_search
from cirray.pipelines.study.config import StudyRun
from cirray.pipelines.study.run import run_stages, run_study

SHAPES = {
    "labelled_families": 16, "heldout_families": 6, "pool_families": 30, "gallery_references": 8,
    "edits_per_reference": 6,
}  # fmt: skip
TRAINED = ("text_only", "labelled_equal", "pretrained", "oracle_pretrained", "oracle_finetuned", "ptha", "checkpoint")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    short = {"training": {"steps": 3, "batch": 8, "log_every": 1}, "validation": {"queries": 8}}
    stages = {name: {"fields": short} for name in TRAINED}
    stages["world"] = {"fields": {"shapes": SHAPES}}
    stages["generator"] = {
        "fields": {"alignment_training": {"steps": 3}, "training": {"steps": 2, "batch": 8}, "evaluate_pairs": 4},
    }  # fmt: skip
    shipped = yaml.safe_load(Path(verb("quickstart").own_file()).read_text())
    return load_config(StudyRun, merged(shipped, {"root": str(tmp_path_factory.mktemp("s")), "stages": stages}))


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_story_runs_from_nothing_to_an_index_that_is_searched(story, ray_config, tmp_path):
    told = run_study(story, find)
    assert set(told.metrics) == {"image only", *story.rows}
    assert all(0.0 <= row["R@1"] <= 1.0 for row in told.metrics.values())
    assert "after the round-trip check" in told.extra["table"] and "cirray serve" in show(told)
    synthetic = read_manifest(f"{story.root}/synthetic", "triplets")
    pairs = read_manifest(f"{story.root}/pairs", "pairs")
    assert synthetic.counts["triplets"] + synthetic.counts["rejected"] == 2 * pairs.counts["pairs"]
    page = (tmp_path / "page.html").as_posix()
    places = told.extra["search"]
    query = SearchRun(
        checkpoint=places["checkpoint"],
        index=places["index"],
        id="gal-00000-0",
        text="make the star red",
        k=3,
        out=page,
    )
    answer = run_search(query)
    assert len(answer.results) == 3 and "gal-00000-0" not in [row.id for row in answer.results]
    assert (tmp_path / "page.html").read_text().count("data:image/png") == 4
    assert Path(told.extra["scores"], "report.html").is_file() and told.extra["scores"] == f"{story.root}/report"


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_finished_story_is_recognised_stage_by_stage(story):
    """Without the note of what is finished too, as after single verbs."""
    before = read_manifest(f"{story.root}/checkpoint").created
    Path(story.root, "finished.json").unlink()
    nodes = run_stages(story.model_copy(update={"ray": False}), find, ["pairs", "synthetic"])
    assert {node.name for node in nodes} == {"world", "towers", "features", "generator", "pairs", "synthetic"}
    assert read_manifest(f"{story.root}/checkpoint").created == before
