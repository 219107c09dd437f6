"""docs/RECIPES.md cannot drift: every value of its tables is what the named recipe resolves to, on every hardware."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml

from cirray.core.config import Config

ROOT = Path(__file__).resolve().parents[2]
FILES = runpy.run_path(str(ROOT / "tests" / "fixtures" / "recipe_files.py"))
PAGE = (ROOT / "docs" / "RECIPES.md").read_text()
NAMES = [FILES["name_of"](path) for path in FILES["FULL"]]
OURS = "-improved|-heldout|-twostage|-cirevl|-mtg"
TRAINED = [
    FILES["name_of"](path)
    for path in FILES["FULL"]
    if FILES["verb_of"](path) in ("finetune", "pretrain", "map", "train-generator") and not re.search(OURS, path.stem)
]
LOOP = ("steps", "batch", "precision", "seed")
OPTIMIZER = ("lr", "weight_decay", "decay", "betas", "cycled_beta1", "eps", "schedule", "warmup", "clip")
CYCLE = ("start_divisor", "final_divisor", "schedule_stretch")
REFERENCE = re.compile(r"`[\w./ -]+\.(py|md|yaml):\d+(-\d+)?`|\btorch\b|arXiv \d{4}\.\d{5}")


def rows_of(text):
    """Every row of the tables of settings: (setting, field, {recipe: value cell}, reference, note)."""
    names: list[str] = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells[:2] == ["setting", "field"]:
            names = [cell.strip("`") for cell in cells[2:-2]]
        elif not cells:
            names = []
        elif names and not line.startswith("|---"):
            assert len(cells) == len(names) + 4, line
            yield cells[0], cells[1].strip("`"), dict(zip(names, cells[2:-2], strict=True)), cells[-2], cells[-1]


def value_at(config, field):
    for part in field.split("."):
        config = config[part] if isinstance(config, dict) else getattr(config, part)
    return json.loads(json.dumps(config.to_dict() if isinstance(config, Config) else config))


RUNS = {
    (name, overlay): FILES["config_of"](name, (overlay,) if overlay else ())
    for name in NAMES
    for overlay in ("", *FILES["overlays_for"](name))
}


def mismatches(text):
    """What a page says wrongly, as (recipe, field, said, is)."""
    found = []
    for _, field, cells, _, _ in rows_of(text):
        for name, cell in cells.items() if field != "-" else ():
            assert name in NAMES, f"no recipe is called {name}"
            said = yaml.safe_load(cell.strip("`"))
            values = {key: value_at(run, field) for key, run in RUNS.items() if key[0] == name}
            found += [(key, field, said, value) for key, value in values.items() if value != said]
    return found


def test_every_value_of_the_page_is_what_the_recipe_resolves_to_on_every_hardware():
    assert mismatches(PAGE) == []


@pytest.mark.parametrize(
    ("said", "wrong"), [("`[0.95, 0.85]`", "`[0.95, 0.8]`"), ("`2.0e-05`", "`1.0e-05`"), ("`null`", "`1.0`")]
)
def test_a_value_that_is_wrong_in_one_cell_is_seen(said, wrong):
    assert len(mismatches(PAGE.replace(said, wrong, 1))) >= 1


def listed():
    found: dict[str, set[str]] = {}
    for _, field, cells, _, _ in rows_of(PAGE):
        for name in cells:
            found.setdefault(name, set()).add(field)
    return found


@pytest.mark.parametrize("name", TRAINED)
def test_every_recipe_of_a_paper_lists_its_loop_and_its_whole_optimiser(name):
    optimizer = RUNS[name, ""].training.optimizer
    needed = OPTIMIZER + (CYCLE if optimizer.schedule == "one_cycle" else ())
    wanted = {f"training.{field}" for field in LOOP} | {f"training.optimizer.{field}" for field in needed}
    assert wanted <= listed().get(name, set())


def test_every_row_names_a_file_and_line_and_every_setting_without_a_field_says_what_differs():
    for setting, field, _, reference, note in rows_of(PAGE):
        assert REFERENCE.search(reference), f"{setting}: {reference}"
        assert field != "-" or note, setting


def test_the_repositories_stand_with_their_commits():
    assert len(re.findall(r"^\| [^|]+ \| `[\w-]+/[\w-]+` \| `[0-9a-f]{40}` \|$", PAGE, flags=re.M)) == 8


def test_recipes_with_held_out_triplets_train_as_their_papers_do():
    pairs = [(name, name.replace("-heldout", "")) for name in NAMES if name.endswith("-heldout")]
    assert len(pairs) == 4
    for held_out, paper in pairs:
        assert RUNS[held_out, ""].training == RUNS[paper, ""].training
        assert RUNS[held_out, ""].validation.held_out and not RUNS[paper, ""].validation.held_out
