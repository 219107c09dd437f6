"""The full-size recipes hang together: what one reads, another writes; and they say what the modes and papers say."""

import re
from pathlib import Path

import pytest
import yaml

from cirray.cli.main import verb
from cirray.core.config import load_config
from cirray.training.config import TrainingConfig

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))
FULL = [path for path in CONFIGS if "-shapes-" not in path.name]
HARDWARE = {"cpu", "h200", "8gpu", "nodes", "8small"}


def tree_of(path):
    return yaml.safe_load(path.read_text())


def config_of(path):
    what = path.name.split("-")[0]
    return load_config(verb({"generator": "train-generator"}.get(what, what)).config_class(), path)


def places(value):
    """Every artifact path inside plain values."""
    if isinstance(value, dict):
        return {place for item in value.values() for place in places(item)}
    if isinstance(value, list):
        return {place for item in value for place in places(item)}
    return {value} if isinstance(value, str) and re.match(r"~/cirray/(?!quickstart|ray)", value) else set()


def test_there_are_recipes_for_every_stage_and_size():
    assert {path.stem.split("-")[-1] for path in FULL} == HARDWARE
    stages = {path.name.split("-")[0] for path in FULL}
    wanted = "towers embed generator mine generate map pretrain finetune evaluate index convert export"
    assert stages == set(wanted.split())


@pytest.mark.parametrize("path", FULL, ids=lambda path: path.stem)
def test_what_a_recipe_reads_another_writes(path):
    written = {tree_of(other)["out"] for other in FULL if other != path}
    tree = tree_of(path)
    assert places({name: value for name, value in tree.items() if name != "out"}) <= written


PAPER = [path for path in FULL if "-paper-" in path.name or path.name.startswith("finetune") and "-sprc-" in path.name]


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_paper_recipes_have_the_settings_of_the_paper_mode(path):
    config = config_of(path).training
    paper = TrainingConfig.for_mode("paper", objective=config.objective)
    names = ("negatives", "mask_duplicates", "one_per_group", "missing_reverse", "batch")
    assert {name: getattr(config, name) for name in names} == {name: getattr(paper, name) for name in names}
    assert config.optimizer.clip is None and config.optimizer.betas == (0.9, 0.98) and config.optimizer.eps == 1e-7
    if config.objective == "ptha":
        assert config.label_smoothing == paper.label_smoothing == 0.1


@pytest.mark.parametrize(
    ("name", "steps", "lr", "weights", "stretch"),
    [
        ("finetune-cirr-ptha-paper-blip2-h200", 50 * 220, 5e-6, 0.4, 1.6),
        ("finetune-fashioniq-ptha-paper-blip2-h200", 30 * 140, 1e-5, 1.0, 1.0),
        ("finetune-cirr-sprc-blip2-h200", 50 * 220, 1e-5, 0.4, 1.6),
        ("finetune-fashioniq-sprc-blip2-h200", 30 * 140, 2e-5, 1.0, 1.0),
    ],
)
def test_published_schedules_are_kept(name, steps, lr, weights, stretch):
    config = config_of(next(path for path in FULL if path.stem == name)).training
    assert (config.steps, config.optimizer.lr, config.optimizer.schedule_stretch) == (steps, lr, stretch)
    assert config.lambda_m == config.lambda_p == weights


def test_the_same_recipe_on_other_hardware_trains_the_same_thing():
    by_name: dict[str, list] = {}
    for path in (path for path in FULL if path.name.startswith(("finetune", "pretrain"))):
        by_name.setdefault(path.stem.rpartition("-")[0], []).append(config_of(path))
    compared = 0
    for configs in by_name.values():
        for other in configs[1:]:
            same = ("engine", "zero_stage", "deepspeed")
            assert configs[0].training.model_copy(update=dict.fromkeys(same)) == other.training.model_copy(
                update=dict.fromkeys(same)
            )
            compared += 1
    assert compared > 8
