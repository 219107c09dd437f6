"""The whole story in a row on a tiny world: every stage through Ray, killed and resumed, then searched."""

import pytest

from cirray.core.artifacts import read_manifest
from cirray.core.config import load_config
from cirray.pipelines.search.config import SearchRun
from cirray.pipelines.search.search import run_search
from cirray.pipelines.study.config import StoryRun
from cirray.pipelines.study.story import run_stages, run_story
from cirray.pipelines.study.story_table import render_story

SHAPES = {
    "labelled_families": 16, "heldout_families": 6, "pool_families": 30, "gallery_references": 8,
    "edits_per_reference": 6,
}  # fmt: skip
TRAINED = ("text_only", "labelled_equal", "pretrained", "oracle_pretrained", "oracle_finetuned", "ptha", "checkpoint")


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    short = {"training": {"steps": 3, "batch": 8, "log_every": 1}, "validation": {"queries": 8}}
    stages = {name: short for name in TRAINED}
    stages["world"] = {"shapes": SHAPES}
    stages["generator"] = {
        "alignment_training": {"steps": 3}, "training": {"steps": 2, "batch": 8}, "evaluate_pairs": 4,
    }  # fmt: skip
    root = tmp_path_factory.mktemp("s")
    return load_config(StoryRun, {"root": str(root), "stages": stages})


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_the_story_runs_from_nothing_to_an_index_that_is_searched(story, tmp_path):
    result = run_story(story)
    assert set(result.recalls) == {"image only", *story.rows}
    assert all(0.0 <= row["R@1"] <= 1.0 for row in result.recalls.values())
    assert "image only" in render_story([result], bars=False)
    synthetic = read_manifest(f"{story.root}/synthetic", "triplets")
    pairs = read_manifest(f"{story.root}/pairs", "pairs")
    assert synthetic.counts["triplets"] + synthetic.counts["rejected"] == 2 * pairs.counts["pairs"]
    page = (tmp_path / "page.html").as_posix()
    query = SearchRun(
        checkpoint=result.places["checkpoint"], index=result.places["index"], id="gal-00000-0",
        text="make the star red", k=3, out=page,
    )  # fmt: skip
    answer = run_search(query)
    assert len(answer.ranking.ids) == 3 and "gal-00000-0" not in answer.ranking.ids
    assert (tmp_path / "page.html").read_text().count("data:image/png") == 4


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_finished_story_is_recognised_stage_by_stage(story):
    before = read_manifest(f"{story.root}/checkpoint").created
    outcomes = run_stages(story.model_copy(update={"ray": False}), ["pairs", "synthetic"])
    assert set(outcomes) == {"world", "towers", "features", "generator", "pairs", "synthetic"}
    assert all(outcome.seconds < 30 for outcome in outcomes.values())
    assert read_manifest(f"{story.root}/checkpoint").created == before
