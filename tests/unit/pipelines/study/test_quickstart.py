"""The study that the package brings: what its stages are, and what is said at the end."""

import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.cli.main import main
from cirray.cli.study import find, prepare, show
from cirray.cli.verb import verb
from cirray.core.config import load_config, validate
from cirray.core.errors import ConfigError
from cirray.core.storage import join
from cirray.evaluation.study import StudyRow, judge_claim
from cirray.pipelines.cluster.schedule import check_graph
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.study.config import StudyRun
from cirray.pipelines.study.graph import Graph
from cirray.pipelines.study.run import study_nodes


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """A finished demo below the user's home has a say in what is left to do."""
    monkeypatch.setenv("HOME", str(tmp_path))


def stages(*words):
    run = load_config(StudyRun, verb("quickstart").own_file(), words)
    return {node.name: node for node in study_nodes(run, find)}


def test_every_stage_comes_after_what_it_reads_and_its_config_resolves():
    nodes = stages("rows=[]")
    check_graph(list(nodes.values()))
    assert {"world", "oracle", "labelled", "index", "report"} <= set(nodes)
    assert nodes["report"].config.triplets == (nodes["checked"].config.out,) and nodes["report"].config.judge


def test_what_it_prints_is_a_study_file_of_the_same_stages(tmp_path, capsys):
    assert main(["quickstart", "--print-config"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    mine = study_nodes(load_config(StudyRun, tmp_path / "mine.yaml"), find)
    assert {node.name: node for node in mine} == stages()


def test_its_rows_are_trained_as_published():
    """The settings behind the README's table; `docs/LOG.md` says how they were found."""
    configs = {name: node.config for name, node in stages("rows=[]").items() if hasattr(node.config, "validation")}
    found = {
        name: (config.training.objective, config.training.steps, config.training.optimizer.lr)
        for name, config in configs.items()
    }
    assert found == {
        "text_only": ("pretrain", 150, 2e-3), "pretrained": ("pretrain", 300, 2e-3),
        "oracle_pretrained": ("pretrain", 300, 2e-3), "labelled_equal": ("finetune", 380, 2e-3),
        "labelled": ("finetune", 600, 2e-3), "oracle_finetuned": ("finetune", 80, 3e-4),
        "ptha": ("ptha", 80, 3e-4), "checkpoint": ("finetune", 80, 3e-4),
    }  # fmt: skip
    assert {config.training.batch for config in configs.values()} == {128}
    assert [name for name, config in configs.items() if config.ray.enabled] == ["pretrained"]
    assert configs["pretrained"].training.engine == "deepspeed" and configs["pretrained"].ray.num_workers == 2


def test_artifacts_lie_where_every_verb_looks_for_them():
    for name, node in stages().items():
        cls = type(node.config)
        if name in (
            "world",
            "towers",
            "features",
            "generator",
            "pairs",
            "synthetic",
            "pretrained",
            "checkpoint",
            "index",
        ):
            assert join(node.config.out) == join(cls.model_fields["root"].default, cls.model_fields["out"].default[1:])


def test_only_the_stages_that_a_row_needs_are_run():
    names = set(stages("rows=[labelled only (equal compute)]", "samples=[]"))
    assert names == {"world", "towers", "features", "labelled_equal", "report"}


def test_a_stage_can_be_overridden_by_name_and_an_unknown_one_is_named():
    config = stages("stages.pretrained.fields.training.steps=7")["pretrained"].config
    assert (config.training.steps, config.training.objective) == (7, "pretrain")
    with pytest.raises(ConfigError, match="'verb' is required|stages.pretrainde"):
        stages("stages.pretrainde.fields.x=1")
    with pytest.raises(ConfigError, match="rows: Unknown name 'MTST'. Did you mean 'MTST only'"):
        stages("rows=[MTST]")


def test_further_generators_are_trained_beside_the_method_s_own():
    nodes = stages("generators=[generator_lora,generator_three_passes_tuned]")
    assert nodes["generator_lora"].config.generator.settings.tuning == "lora"
    assert nodes["generator_three_passes_tuned"].config.generator.settings.passes == (
        "reference",
        "target",
        "difference",
    )
    assert "generator_tuned" not in nodes
    with pytest.raises(ConfigError, match="'lora'. Did you mean 'generator_lora'|Known: generator, generator_lora"):
        stages("generators=[lora]")


def test_labels_and_seed_reach_every_stage_that_uses_them():
    configs = {name: node.config for name, node in stages("variables.labels=1000", "seeds=3", "rows=[]").items()}
    assert configs["generator"].labels == configs["labelled"].labels == configs["ptha"].labels == 1000
    assert configs["pretrained"].labels == 0 and stages()["generator"].config.labels is None
    assert configs["world"].shapes.seed == configs["pretrained"].training.seed == configs["report"].seed == 3


def test_without_ray_nothing_uses_it():
    for name, node in stages("ray=false", "rows=[]").items():
        ray = getattr(node.config, "ray", None)
        assert ray is None or not ray.enabled, name


def test_a_job_makes_only_those_stages_first_that_are_missing(tmp_path, monkeypatch):
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "manifest.json").write_text("{}")
    made = []
    monkeypatch.setattr(
        "cirray.pipelines.study.run.run_stages", lambda run, find, names: made.append((run.root, names))
    )
    data = {"format": "folder", "folder": {"root": "@world"}}
    prepare(validate(EmbedRun, {"root": str(tmp_path), "data": data, "tower": "@towers"}))
    prepare(validate(EmbedRun, {"root": str(tmp_path), "data": data, "tower": "/elsewhere"}))
    prepare(validate(StudyRun, {"root": str(tmp_path), "judge": "@towers"}))  # it makes its own stages
    assert made == [(str(tmp_path), ["towers"])]


def test_what_a_field_names_by_default_is_the_stage_of_that_name_as_its_variables_make_it():
    run = load_config(StudyRun, verb("quickstart").own_file(), ["root=/x"])
    graph = Graph(run, 0, find)
    assert graph.add("synthetic", {"labels": 1000}) == "synthetic@labels=1000"
    node = graph.nodes["synthetic@labels=1000"]
    assert set(node.after) == {"pairs", "features", "generator@labels=1000", "world"}
    places = (node.config.generator.settings.source, node.config.pairs, node.config.judge, node.config.out)
    assert places == ("/x/generator@labels=1000", "/x/pairs", "/x/world", "/x/synthetic@labels=1000")
    assert graph.reads("labelled_equal") == ("world", "features", "towers")


def test_several_seeds_have_a_folder_each():
    node = stages("per_seed=true", "seeds=[4,5]", "root=/x")["checkpoint"]
    assert node.config.out == "/x/seed-4/checkpoint" and node.config.init == "/x/seed-4/pretrained"


def test_a_claim_can_ask_for_a_share_of_an_upper_bound_s_gain():
    base, top = StudyRow("base", {"R@1": (0.5, 0.5)}), StudyRow("top", {"R@1": (0.6, 0.7)})
    ours = StudyRow("ours", {"R@1": (0.59, 0.64)})
    found = judge_claim("keeps", ours, [base], "R@1", share=0.8, upper=top)
    assert found.wanted == pytest.approx((0.08, 0.16)) and found.word == "not settled"
    assert "wanted: more than +12.0" in found.line()
    assert judge_claim("keeps", ours, [base], "R@1", share=0.6, upper=top).word == "confirmed"


def manifest(root, query=("gal-1", "add a star's twin")):
    places = {"root": str(root), "index": f"{root}/index", "checkpoint": f"{root}/checkpoint", "query": query}
    extra = {"table": "T", "out": f"{root}/study-1", "scores": f"{root}/report", "longest": {"generator": 61.2}}
    return SimpleNamespace(extra={**extra, "search": places})


def test_the_closing_lines_link_the_pages_and_name_commands_for_a_new_shell(tmp_path, monkeypatch):
    root = tmp_path / "my world"
    text = show(manifest(root))
    assert text.startswith("T\n\nlongest stages: generator 61 s\n") and "\033" not in text
    for page in ("study-1", "report"):
        assert f"{(root / page / 'report.html').as_uri()}\n" in text
    commands = [shlex.split(line) for line in text.splitlines() if re.search(r" (serve|search) ", line)]
    commands = [words for words in commands if Path(words[0]).is_absolute()]
    asked = ["search", "--id", "gal-1", "--text", "add a star's twin", "--root", str(root)]
    assert [words[1:] for words in commands] == [["serve", "--root", str(root)], asked]
    listed = subprocess.run([commands[0][0], "--version"], capture_output=True, text=True, cwd="/", env={})
    assert listed.stdout.startswith("cirray ")
    assert " search " not in show(manifest(root, None)).split("serve", 1)[1]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\033]8;;file:///" in show(manifest(root))


def test_in_its_usual_place_it_is_served_without_any_field():
    assert re.search(r"/cirray serve$", show(manifest("~/cirray/quickstart")), re.M)


def test_a_study_without_an_index_says_nothing_of_search():
    told = manifest("/x")
    del told.extra["search"]
    assert "serve" not in show(told)
