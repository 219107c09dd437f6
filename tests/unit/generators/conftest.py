"""A tiny generator: random weights, eight words, four patches."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from cirray.generators.config import GeneratorConfig, ReaderConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.prompts import all_prompts
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import LanguageModel, build_language_model, build_word_tokenizer

PATCHES, WIDTH = 4, 12


class MemoryFeatures:
    """Random tokens per image id, as the feature store would give them."""

    def __init__(self, ids: Sequence[str]) -> None:
        rng = np.random.default_rng(0)
        self._rows = {name: rng.standard_normal((PATCHES, WIDTH)).astype(np.float16) for name in ids}

    def get(self, ids: Sequence[str]) -> np.ndarray:
        return np.stack([self._rows[name] for name in ids])

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._rows


@pytest.fixture
def language() -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer([*all_prompts(), "make it red blue round small add remove"])
    config = LanguageModelConfig(width=16, layers=2, heads=2, intermediate=32, positions=64, initializer_range=0.4)
    made = build_language_model(config, tokenizer)
    made.model.eval()
    return made


@pytest.fixture
def model_of(language: LanguageModel) -> Callable[..., ModificationTextModel]:
    def build(**fields: Any) -> ModificationTextModel:
        torch.manual_seed(1)
        qformer = ReaderConfig(width=16, layers=1, heads=2, queries=3, intermediate=16, initializer_range=0.3)
        return ModificationTextModel(GeneratorConfig(qformer=qformer, **fields), language, WIDTH)

    return build


@pytest.fixture
def features() -> MemoryFeatures:
    return MemoryFeatures(["a", "b", "c", "d"])


@pytest.fixture
def images_BPD() -> torch.Tensor:
    return torch.randn(2, 5, PATCHES, WIDTH, generator=torch.Generator().manual_seed(3))
