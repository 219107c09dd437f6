"""Every name that a config may say stands in CONTRIBUTING and is used by a test."""

import re
from pathlib import Path

import pytest

from cirray.data.readers import READERS
from cirray.generators.captioners.config import CAPTIONERS
from cirray.generators.config import GENERATORS, TRAINABLE
from cirray.generators.rewriters.config import REWRITERS
from cirray.index.config import INDEXES
from cirray.mining.config import POLICIES
from cirray.models.conversion import FORMATS
from cirray.models.fusion.config import DUAL_HEADS, HEADS
from cirray.models.text_processors import TEXT_PROCESSORS
from cirray.models.towers.backbones import BACKBONES
from cirray.training.config import MIXERS
from cirray.training.engine import ENGINES
from cirray.training.terms.config import OBJECTIVES, TERMS
from cirray.training.zeroshot.config import MAPPINGS, UNTRAINED
from cirray.triplets.filters import FILTERS

ROOT = Path(__file__).resolve().parents[2]
TESTS = {path: path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
NAMES = sorted(
    {*READERS, *POLICIES, *FILTERS, *HEADS, *DUAL_HEADS, *BACKBONES, *FORMATS, *ENGINES, *OBJECTIVES, *TERMS}
    | {
        *CAPTIONERS,
        *TEXT_PROCESSORS,
        *REWRITERS,
        *GENERATORS,
        *TRAINABLE,
        *MIXERS,
        *MAPPINGS,
        *INDEXES,
        UNTRAINED,
        "word_map",
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_name_is_documented(name):
    assert f"`{name}`" in CONTRIBUTING


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_name_has_a_test(name):
    word = re.compile(rf"\b{re.escape(name)}\b")
    assert any(word.search(text) for text in TESTS.values())
