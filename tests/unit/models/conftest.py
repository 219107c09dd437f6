import pytest
import torch
from modes import retriever_mode

from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig
from cirray.models.text import build_tokenizer

TEXTS = ["paint the red circle blue", "remove the small square", "move it to the top left"]
SMALL = QFormerConfig(width=16, layers=2, heads=2, queries=3, intermediate=32, initializer_range=0.2)


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer(TEXTS)


@pytest.fixture
def make(tokenizer):
    def build(mode="improved", seed=0, **fields):
        config = retriever_mode(mode, **{"qformer": SMALL, "embed_dim": 8, "text_length": 12, **fields})
        return build_retriever(config, tokenizer, patch_width=6, seed=seed).eval()

    return build


@pytest.fixture
def patches():
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def texts():
    return list(TEXTS)
