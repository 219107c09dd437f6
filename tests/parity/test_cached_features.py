"""Training on cached patch tokens against encoding every image anew."""

import numpy as np
import pytest
import torch

from cirray.data.config import TransformConfig
from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig, VisionTowerConfig
from cirray.models.text import build_tokenizer
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.training.config import TrainingConfig
from cirray.training.gather import NoGather
from cirray.training.objectives import retrieval_loss
from cirray.training.retrieval import RetrievalTask
from cirray.types import Triplet

ROWS = [Triplet(str(i), str(i), str(i + 4), text, "undo it") for i, text in enumerate(["red", "blue", "big", "up"])]


class Live:
    """Encodes on every call."""

    def __init__(self, tower, images):
        self.tower, self.images = tower, images

    def get(self, ids):
        with torch.no_grad():
            return self.tower(torch.from_numpy(self.images[[int(name) for name in ids]])).numpy()

    def __contains__(self, name):
        return int(name) < len(self.images)


class Cached(Live):
    """Encodes once and keeps half precision, as the feature store does."""

    def __init__(self, tower, images, dtype):
        super().__init__(tower, images)
        self.tokens = Live.get(self, [str(i) for i in range(len(images))]).astype(dtype)

    def get(self, ids):
        return self.tokens[[int(name) for name in ids]]


@pytest.fixture(scope="module")
def losses():
    torch.manual_seed(0)
    sizes = VisionTowerConfig(image_size=32, patch_size=16, width=16, heads=2, layers=1, intermediate=32)
    tower = build_vision_tower(sizes, TransformConfig(size=32))
    images = np.random.default_rng(0).integers(0, 256, size=(8, 32, 32, 3), dtype=np.uint8)
    sizes = QFormerConfig(width=16, heads=2, queries=3, intermediate=32, initializer_range=0.2)
    tokenizer = build_tokenizer([row.modification for row in ROWS])
    retriever = build_retriever(RetrieverConfig(qformer=sizes, embed_dim=8), tokenizer, tower.width)
    config = TrainingConfig(objective="ptha", batch=4)

    def loss(features):
        task = RetrievalTask(retriever, ROWS, features, config)
        total = retrieval_loss(retriever, task.batch(ROWS), config, NoGather()).total
        return total.item(), torch.autograd.grad(total, retriever.qformer.query_tokens)[0]

    kinds = {"live": Live(tower, images), "fp32": Cached(tower, images, np.float32)}
    kinds |= {"fp16": Cached(tower, images, np.float16), "shuffled": Cached(tower, images[::-1].copy(), np.float32)}
    return {name: loss(features) for name, features in kinds.items()}


@pytest.mark.parametrize(("kind", "tolerance"), [("fp32", 1e-6), ("fp16", 5e-3)])
def test_cached_tokens_give_the_loss_and_gradient_of_live_ones(losses, kind, tolerance):
    assert losses[kind][0] == pytest.approx(losses["live"][0], abs=tolerance)
    assert torch.allclose(losses[kind][1], losses["live"][1], atol=tolerance)


def test_tokens_of_other_images_give_another_loss(losses):
    assert losses["shuffled"][0] != pytest.approx(losses["live"][0], abs=1e-2)
