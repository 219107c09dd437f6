"""Recipes, overlays and serve configs by name."""

from pathlib import Path

import pytest
import yaml

from cirray.cli import recipes as shelf
from cirray.cli.completion import answers
from cirray.cli.main import configured, job, main
from cirray.cli.recipes import recipes, serve_configs, verb_of
from cirray.cli.verb import VERBS, verb
from cirray.core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


def test_a_name_and_its_file_are_the_same_recipe_with_overlays_and_assignments_over_it():
    by_name = configured(verb("finetune"), ["cirr/finetune-sprc", "hardware/train-8gpu", "training.steps=7"]).config
    paths = [str(ROOT / "jobs/configs" / f"{name}.yaml") for name in ("cirr/finetune-sprc", "hardware/train-8gpu")]
    assert by_name == configured(verb("finetune"), [*paths, "training.steps=7"]).config
    assert (by_name.ray.num_workers, by_name.training.engine) == (8, "deepspeed")


def test_every_recipe_has_a_verb_and_every_overlay_has_none():
    odd = [name for name in recipes() if bool(verb_of(name)) == name.startswith("hardware/")]
    assert len(recipes()) > 100 and odd == []
    assert verb_of("cirr/train-generator-mtg") == "train-generator" and verb_of("shapes/pretrain") == "pretrain"


def test_a_service_s_settings_are_found_by_name():
    run = configured(verb("serve"), ["production", "port=9000"]).config
    assert Path(run.file) == serve_configs()["production"] == ROOT / "serve_configs/production.yaml"


@pytest.mark.parametrize(
    "words, told",
    [
        (["finetune", "cirr/finetune-ptha"], "'cirr/finetune-ptha-improved' or 'cirr/finetune-ptha-paper'"),
        (["finetune", "cir/finetune-sprc"], "'cirr/finetune-sprc'"),
        (["finetune", "cirr/finetune-sprc", "hardware/finetune-8gpu"], "'hardware/train-8gpu'"),
        (["config", "finetune", "cirr/finetune-sprk"], "'cirr/finetune-sprc'"),
        (["serve", "prodction"], "'production'"),
        (["finetune", "loose"], "has no recipe 'loose'"),
        (["browse", "loose"], "neither a .yaml file"),
    ],
)
def test_a_name_that_is_none_is_one_sentence_with_the_near_ones(words, told, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error and len(error) < 320 and len(error.strip().splitlines()) == 1


def test_a_job_takes_names_too_and_says_an_unknown_one_in_a_sentence(capsys):
    assert job("finetune", argv=["shapes/finetunee"]) == 2
    assert "'shapes/finetune'" in capsys.readouterr().err
    assert job("finetune", argv=["shapes/finetune", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["objective"] == "ptha"


def test_a_job_without_a_file_takes_the_recipe_of_the_embedded_world(capsys):
    assert job("finetune", argv=["root=/x", "training.steps=7", "--print-config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert (found["out"], found["training"]["steps"]) == ("/x/jobs/ptha", 7)
    assert job("finetune", argv=["--help"]) == 0 and "cirray finetune" in capsys.readouterr().out


def test_a_value_and_a_path_stay_what_they_are():
    assert configured(verb("finetune"), ["--out", "shapes/finetune"]).config.out == "shapes/finetune"
    assert configured(verb("doctor"), ["shapes/embed"]).config.folder == "shapes/embed"
    with pytest.raises(ConfigError, match="cannot be read"):
        configured(verb("finetune"), ["./shapes/finetune.yaml"])


def test_help_lists_them_with_what_their_comments_say(capsys):
    assert main(["finetune", "--help", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines]
    assert "cirr/finetune-sprc" in names and "hardware/train-8gpu" in names and "cirr/embed" not in names
    assert all(len(line.split()) > 3 for line in lines)
    assert main(["world", "--help", "recipes"]) == 0 and "no recipes" in capsys.readouterr().out


def test_a_tab_completes_them():
    assert answers(["finetune", "cirr/finetune-spr"]) == ["cirr/finetune-sprc", "cirr/finetune-sprc-heldout"]
    assert answers(["serve", "prod"]) == ["production"]
    assert answers(["plan", "cirr/finetune-sprc", "training.st"]) == ["training.steps="]


def test_an_installed_package_reads_its_own_data_before_a_folder_beside_it(tmp_path, monkeypatch):
    (tmp_path / "cirray/recipes/mine").mkdir(parents=True)
    (tmp_path / "cirray/recipes/mine/finetune-x.yaml").write_text("# X.\n")
    (tmp_path / "jobs/configs/theirs").mkdir(parents=True)
    (tmp_path / "jobs/configs/theirs/finetune-y.yaml").write_text("# Y.\n")
    monkeypatch.setattr(shelf, "_PACKAGE", tmp_path / "cirray")
    assert list(recipes.__wrapped__()) == ["mine/finetune-x"]


def test_no_example_needs_a_checkout():
    assert [name for name in VERBS if "jobs/" in verb(name).example] == []
