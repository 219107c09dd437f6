"""Several files on a command line, and `cirray config`, which says what they mean."""

import logging

import pytest
import yaml

from cirray.cli.config import verb_of
from cirray.cli.main import configured, job, main
from cirray.cli.verb import verb
from cirray.core.errors import ConfigError

RECIPE = """\
data: {format: fashioniq, preset: pseudo_word, fashioniq: {root: ~/x, reference_rule: keep}}
training: {steps: 300, optimizer: {lr: 1e-3}}
"""
HARDWARE = "training: {steps: 400, engine: deepspeed}\nray: {num_workers: 2}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "finetune-x.yaml").write_text(RECIPE)
    (tmp_path / "8gpu.yaml").write_text(HARDWARE)
    return ["finetune-x.yaml", "8gpu.yaml"]


def lines(capsys, *words):
    assert main(["config", *words]) == 0
    return {" ".join(line.split()) for line in capsys.readouterr().out.splitlines()}


def test_a_verb_takes_several_files_and_the_later_wins(recipe, capsys):
    run = configured(verb("finetune"), [*recipe, "training.batch=8", "--training.seed", "16"]).config
    assert (run.training.steps, run.training.optimizer.lr, run.training.engine) == (400, 1e-3, "deepspeed")
    assert (run.training.batch, run.training.seed, run.ray.num_workers) == (8, 16, 2)
    assert job("finetune", argv=[*recipe, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["training"]["steps"] == 400


def test_every_value_is_shown_with_its_origin(recipe, capsys):
    shown = lines(capsys, *recipe, "training.batch=8", "features=[a, b]", "tokenizer=012 #x")
    assert {
        "# cirray finetune", "format: fashioniq # finetune-x.yaml", "captions: both_averaged # preset pseudo_word",
        "reference_rule: keep # finetune-x.yaml", "steps: 400 # 8gpu.yaml, over 300 of finetune-x.yaml",
        "batch: 8 # the command line", "features: [a, b] # the command line", "seed: 0 # default",
        "objective: ptha # default", "num_workers: 2 # 8gpu.yaml",
        "tokenizer: '012 #x' # the command line",
    } <= shown  # fmt: skip


def test_what_it_prints_is_a_config_file_that_means_the_same(recipe, capsys, tmp_path):
    words = [*recipe, "guard=[{format: circo, preset: ptha}]", "tokenizer=no", "validation.queries=benchmark"]
    for extra in ([], ["--given"]):
        assert main(["config", "finetune", *words, *extra]) == 0
        (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
        again = configured(verb("finetune"), ["printed.yaml"]).config
        assert again == configured(verb("finetune"), words).config


def test_a_swept_fields_values_have_their_origin_however_its_path_is_written(recipe, tmp_path, capsys):
    (tmp_path / "tune.yaml").write_text("space: {training.steps: {grid: [1, 2]}}\n")
    shown = lines(capsys, "tune.yaml", "space.training.optimizer.lr.uniform=[1e-3, 1]")
    assert {"grid: [1, 2] # tune.yaml", "uniform: [0.001, 1.0] # the command line"} <= shown


def test_defaults_can_be_left_out(recipe, capsys):
    shown = lines(capsys, "finetune", "training.steps=5", "--given")
    assert shown == {"# cirray finetune", "training:", "steps: 5 # the command line"}


def test_the_verb_is_told_by_word_name_or_fields(recipe, tmp_path):
    (tmp_path / "train-generator-y.yaml").write_text("zero_shot: false\n")
    (tmp_path / "mine.yaml").write_text("mining: {count: 5}\n")
    (tmp_path / "run.yaml").write_text("mining: {count: 5}\n")
    assert verb_of(recipe) == verb_of(recipe[::-1]) == "finetune"
    assert verb_of(recipe, "pretrain") == "pretrain"
    assert verb_of(["train-generator-y.yaml"]) == "train-generator"
    assert verb_of(["mine.yaml"]) == verb_of(["run.yaml"]) == "mine"
    faults = ((["8gpu.yaml"], "", "verb=NAME with one of .*finetune"), ([], "", "Name a verb"))
    for files, named, words in (*faults, (["run.yaml"], "mnie", "Did you mean 'mine'")):
        with pytest.raises(ConfigError, match=words):
            verb_of(files, named)


def test_a_verb_with_a_file_of_its_own_and_one_with_another_programs_files_are_shown(capsys):
    assert any("root:" in line for line in lines(capsys, "quickstart", "seeds=[1]"))
    assert "file: a.yaml # the command line" in lines(capsys, "serve", "a.yaml", "port=9000")


@pytest.mark.parametrize("words", [["config", "finetune"], ["finetune"]])
def test_an_overlay_for_another_stage_is_refused_by_field_and_file(recipe, capsys, words):
    assert main([*words, "finetune-x.yaml", "decode.yaml"]) == 2
    assert "decode.yaml" in capsys.readouterr().err
    with open("embed-8gpu.yaml", "w") as file:
        file.write("decode_tasks: 96\n")
    assert main([*words, "finetune-x.yaml", "embed-8gpu.yaml"]) == 2
    assert "embed-8gpu.yaml: Unknown config field 'decode_tasks'" in capsys.readouterr().err


def test_a_run_says_what_presets_filled_in(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("cirray"), "propagate", True)
    words = ["data.format=fashioniq", "data.preset=pic2word", "data.fashioniq.root=nowhere"]
    assert main(["evaluate", *words, "data.fashioniq.gallery=original", "checkpoint=nowhere"]) == 2
    told = "preset pic2word: data.fashioniq.reference_rule=keep, data.fashioniq.captions=reverse_and"
    assert told in [record.getMessage() for record in caplog.records]


def test_a_file_that_is_not_there_is_named(capsys):
    assert main(["config", "jobs/none.yaml"]) == 2
    assert "Config file 'jobs/none.yaml' cannot be read: No such file" in capsys.readouterr().err
