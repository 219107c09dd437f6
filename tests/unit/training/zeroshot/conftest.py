import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.models.words.config import WordMapConfig
from cirray.models.words.word_map import build_word_map
from cirray.training.zeroshot.base import MapSetup
from cirray.training.zeroshot.config import MAPPINGS, MappingConfig
from cirray.types import Triplet

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "fixtures" / "small_clip.py")))
CAPTIONS = ("the red circle", "a blue square", "small red square", "the blue circle and the red square", "red", "blue")


class Features:
    """Random tokens of a CLIP tower by image id; counts how often it is read."""

    def __init__(self, count, seed=0):
        self.rows = {f"img-{row}": row for row in range(count)}
        self.tokens = np.random.default_rng(seed).normal(size=(count, 5, 24)).astype(np.float32)
        self.read = 0

    def get(self, ids):
        self.read += len(ids)
        return self.tokens[[self.rows[name] for name in ids]]

    def __contains__(self, name):
        return name in self.rows


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return small.save_hf(small.hf_model(), tmp_path_factory.mktemp("clip") / "hf")


@pytest.fixture
def make_retriever(clip):
    def build(seed=0, **fields):
        tree = {"source": clip, "injection": {"heads": 4}, "text_length": 16, "phi": {"dropout": 0.0}, **fields}
        return build_word_map(WordMapConfig.model_validate(tree), 24, seed)

    return build


@pytest.fixture
def make_setup(make_retriever):
    def build(model=None, tokens=None, **fields):
        features = Features(len(CAPTIONS))
        kind = fields.pop("objective", "mapping")
        own = {name: fields.pop(name) for name in MAPPINGS.settings(kind).model_fields if name in fields}
        objective = {"kind": kind, "settings": own}
        loop = {"steps": 4, "batch": 4, "log_every": 1, "checkpoint_every": None, "objective": objective, **fields}
        retriever, config = make_retriever(**(model or {})), MappingConfig.model_validate(loop)
        return MapSetup(retriever, tuple(features.rows), CAPTIONS, features, config, tokens)

    return build


@pytest.fixture
def features():
    return Features(24)


@pytest.fixture
def triplets():
    texts = ["paint it blue", "remove the red circle", "move it to the left", "the small square"]
    return [
        Triplet(f"t-{row}", f"img-{row % 8}", f"img-{8 + row}", texts[row % 4], group_id=f"g-{row}")
        for row in range(16)
    ]
