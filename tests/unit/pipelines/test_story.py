import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from cirray.core import storage
from cirray.core.config import load_config
from cirray.core.errors import ConfigError
from cirray.pipelines.cluster.schedule import check_graph
from cirray.pipelines.study.config import StoryRun
from cirray.pipelines.study.story import ROWS, StoryResult, story_nodes, story_recipes
from cirray.pipelines.study.story_table import place_lines, render_story, serve_command


def result(seed=0, best=0.66, labelled=0.55, exact=0.9):
    recalls = {name: {"R@1": 0.5, "R@5": 0.6, "R@10": 0.7} for name in ["image only", *ROWS]}
    recalls["MTST + fine-tuning"]["R@1"] = best
    recalls["oracle texts + fine-tuning"]["R@1"] = 0.67
    for name in ("labelled only (equal compute)", "labelled only (saturated)"):
        recalls[name]["R@1"] = labelled
    ways = {way: {"exact": exact} for way in ("forward", "reverse")}
    text = {"generator": {"trained": ways, "zero_shot": ways}, "synthetic": {"exact": 0.6, "triplets": 9}}
    places = {name: f"x/{name}" for name in ("report", "checkpoint", "index")}
    return StoryResult("x", seed, 2000, recalls, text, {"pretrained": 10.0}, 100.0, "shapes: protocol", places)


def test_every_stage_comes_after_what_it_reads_and_its_config_resolves():
    nodes = story_nodes(StoryRun(rows=()), ["report", "index"])
    check_graph(nodes)
    others = {name for name in story_recipes(StoryRun()) if name.startswith("generator_")}
    assert {node.name for node in nodes} == set(story_recipes(StoryRun())) - others and others


def test_only_the_stages_that_a_row_needs_are_run():
    names = {node.name for node in story_nodes(StoryRun(rows=("labelled only (equal compute)",)), ["labelled_equal"])}
    assert names == {"world", "towers", "features", "labelled_equal"}


def test_a_stage_can_be_overridden_by_name_and_an_unknown_one_is_named():
    run = load_config(StoryRun, None, ["stages.pretrained.training.steps=7"])
    node = next(node for node in story_nodes(run, ["pretrained"]) if node.name == "pretrained")
    assert (node.config.training.steps, node.config.training.objective) == (7, "pretrain")
    with pytest.raises(ConfigError, match="'pretrainde'. Did you mean 'pretrained'"):
        story_nodes(load_config(StoryRun, None, ["stages.pretrainde.x=1"]), ["world"])
    with pytest.raises(ConfigError, match="row of the table"):
        story_nodes(StoryRun(rows=("nothing",)), ["report"])


def test_further_generators_are_trained_beside_the_method_s_own_and_printed():
    run = StoryRun(generators=("LoRA", "three passes tuned"))
    configs = {node.name: node.config for node in story_nodes(run, ["generator_lora", "generator_three_passes_tuned"])}
    assert configs["generator_lora"].model.tuning == "lora"
    assert configs["generator_three_passes_tuned"].model.passes == ("reference", "target", "difference")
    found = result(exact=0.5)
    found.text["LoRA"] = {"trained": {"forward": {"exact": 0.25}, "reverse": {"exact": 0.75}}}
    line = next(line for line in render_story([found, found]).splitlines() if "trained, LoRA" in line)
    assert line.split("LoRA")[1].split() == ["0.250", "±", "0.000", "/", "0.750", "±", "0.000"]


def test_labels_and_seed_reach_every_stage_that_uses_them():
    configs = {node.name: node.config for node in story_nodes(StoryRun(labels=1000, seed=3, rows=()), ["report"])}
    assert configs["generator"].labels == configs["labelled"].labels == configs["ptha"].labels == 1000
    assert configs["pretrained"].labels == 0
    assert configs["world"].shapes.seed == configs["pretrained"].training.seed == 3


def test_without_ray_nothing_uses_it():
    for node in story_nodes(StoryRun(ray=False), ["report", "index"]):
        ray = getattr(node.config, "ray", None)
        assert ray is None or not ray.enabled, node.name


def test_the_table_says_mean_and_spread_and_which_promise_was_kept():
    text = render_story([result(0), result(1, best=0.68)])
    assert "MTST + fine-tuning" in text and "±" in text
    assert text.count("MET") == 4 and "MISSED" not in text
    assert "MISSED" in render_story([result(best=0.56)])


def test_the_closing_lines_link_the_report_and_name_one_command_for_a_new_shell(tmp_path, monkeypatch):
    places = {name: str(tmp_path / "my world" / name) for name in ("report", "checkpoint", "index")}
    text = place_lines(replace(result(), root=str(tmp_path / "my world"), places=places))
    assert f"{(tmp_path / 'my world/report/report.html').as_uri()}\n" in text and "\033" not in text
    commands = [shlex.split(line) for line in text.splitlines() if " serve" in line]
    assert [words[1:] for words in commands] == [["serve", "--root", str(tmp_path / "my world")]]
    assert Path(commands[0][0]).is_absolute() and "make serve" not in text
    listed = subprocess.run([commands[0][0], "--version"], capture_output=True, text=True, cwd="/", env={})
    assert listed.stdout.startswith("cirray ")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\033]8;;file:///" in place_lines(result())


def test_a_story_in_its_usual_place_is_served_without_any_field():
    run = StoryRun()
    usual = {name: storage.join(run.root, name) for name in ("report", "checkpoint", "index")}
    assert serve_command(replace(result(), root=run.root, places=usual)).endswith("/cirray serve")


def test_the_closing_lines_ask_a_query_that_the_index_answers_rightly(tmp_path):
    places = {name: str(tmp_path / name) for name in ("report", "checkpoint", "index")}
    told = replace(result(), root=str(tmp_path), places=places, query=("gal-1", "add a star's twin"))
    asked = next(shlex.split(line) for line in place_lines(told).splitlines() if " search " in line)
    assert asked[1:] == ["search", "--id", "gal-1", "--text", "add a star's twin", "--root", str(tmp_path)]
    assert " search " not in place_lines(replace(told, query=None))
