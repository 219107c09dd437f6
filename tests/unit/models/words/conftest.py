import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cirray.models.words.config import WordMapConfig
from cirray.models.words.word_map import build_word_map

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[3] / "fixtures" / "small_clip.py")))


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("clip")
    return {
        "hf_clip": small.save_hf(small.hf_model(), root / "hf"),
        "open_clip": small.save_open(small.open_model(), root / "open"),
    }


@pytest.fixture
def make(folders):
    def build(backbone="hf_clip", seed=0, patch_width=24, **fields):
        config = WordMapConfig.model_validate(
            {"source": folders[backbone], "injection": {"heads": 4}, "text_length": 12, **fields}
        )
        return build_word_map(config, patch_width, seed).eval()

    return build


@pytest.fixture
def patches():
    return torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
