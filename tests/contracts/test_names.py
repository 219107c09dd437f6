"""Every name that a config may say stands in CONTRIBUTING and is used by a test."""

import importlib
import re
from pathlib import Path

import pytest

from cirray.data import readers
from cirray.generators.captioners import base as captioners
from cirray.generators.rewriters import base as rewriters
from cirray.generators.store import KINDS as GENERATOR_KINDS
from cirray.mining.pairs import POLICIES
from cirray.models.conversion import FORMATS
from cirray.models.fusion.dual import DUAL_HEADS
from cirray.models.fusion.heads import HEADS
from cirray.models.towers import backbones
from cirray.training.engines import ENGINES
from cirray.training.mixing import MIXERS
from cirray.training.objectives import OBJECTIVES
from cirray.training.terms.base import TERMS
from cirray.training.zeroshot import mapping, text_only, token_search  # noqa: F401  (file their objectives)
from cirray.training.zeroshot.base import MAPPINGS, UNTRAINED
from cirray.triplets.filters import FILTERS

ROOT = Path(__file__).resolve().parents[2]
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def formats():
    """Data formats, once their modules have registered them."""
    for module in readers._MODULES:
        importlib.import_module(f"cirray.data.{module}")
    return list(readers.READERS)


def all_backbones():
    """Dual-encoder backbones, once their modules have registered them."""
    backbones._load()
    return backbones.BACKBONES.names()


def all_captioners():
    """Captioners, once their modules have registered them."""
    captioners.load_captioners()
    return captioners.CAPTIONERS.names()


def all_rewriters():
    """Rewriters, once their modules have registered them."""
    rewriters.load_rewriters()
    return rewriters.REWRITERS.names()


NAMES = sorted(
    {*formats(), *POLICIES, *FILTERS, *HEADS, *DUAL_HEADS, *all_backbones(), *FORMATS, *ENGINES, *OBJECTIVES, *TERMS}
    | {*all_captioners(), *all_rewriters(), *GENERATOR_KINDS, *MIXERS, *MAPPINGS, UNTRAINED, "word_map"}
)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_name_is_documented(name):
    assert f"`{name}`" in CONTRIBUTING


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_name_has_a_test(name):
    word = re.compile(rf"\b{re.escape(name)}\b")
    assert any(word.search(text) for text in TESTS.values())
