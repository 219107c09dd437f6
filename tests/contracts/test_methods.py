"""A method is a config: the training loop, its configuration and the verbs of training know none by name."""

import re
from pathlib import Path

import pytest

from cirray.cli.verb import VERBS, verb
from cirray.training.terms.config import OBJECTIVES, TERMS

ROOT = Path(__file__).resolve().parents[2]
PAPERS = {
    "mtst", "ptha", "sprc", "spn", "vdg", "clip4cir", "searle", "lincir", "pic2word", "cirevl", "tirg", "magiclens"
}  # fmt: skip
NAMES = (PAPERS | {*OBJECTIVES, *TERMS}) - {"pretrain", "finetune", "infonce"}
"""All but the names that are no method's."""
COMPONENTS = {"mixing.py"}
"""The file of the loop's room with components, like those of `terms`: it cites where they come from."""
DEFAULTS = {"cirray/pipelines/training/config.py": {"ptha", "two_hop", "rtc"}}
"""Values of a run where nothing else is said: the objective of `cirray finetune`, the space of `cirray tune`."""
LOOP = [
    *(path for path in sorted((ROOT / "cirray/training").glob("*.py")) if path.name not in COMPONENTS),
    *sorted((ROOT / "cirray/pipelines/training").glob("*.py")),
]


def named(text):
    return {name for name in NAMES if re.search(rf"\b{re.escape(name)}\b", text, flags=re.IGNORECASE)}


@pytest.mark.parametrize("path", LOOP, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_loop_names_no_method(path):
    place = path.relative_to(ROOT).as_posix()
    assert named(path.read_text()) == DEFAULTS.get(place, set())


@pytest.mark.parametrize("name", [name for name in VERBS if verb(name).group == "training"])
def test_the_verbs_of_training_name_no_method(name):
    assert named(repr(verb(name))) == set()


def test_a_name_would_be_seen():
    assert named("AdamW (SPRC: 0.9), bank_infonce") == {"sprc", "bank_infonce"}
