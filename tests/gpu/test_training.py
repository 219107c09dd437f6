"""The training step on an accelerator against the CPU."""

import numpy as np
import pytest
import torch

from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig
from cirray.models.text import build_tokenizer
from cirray.training.config import TrainingConfig
from cirray.training.loop import train
from cirray.training.retrieval import RetrievalTask
from cirray.training.torch_engine import TorchEngine
from cirray.types import Triplet

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")]


class Features:
    """Random patch tokens by image id."""

    tokens = np.random.default_rng(0).normal(size=(24, 4, 6)).astype(np.float32)

    def get(self, ids):
        return self.tokens[[int(name) for name in ids]]

    def __contains__(self, name):
        return int(name) < len(self.tokens)


def history(device, precision):
    rows = [Triplet(str(i), str(i), str(i + 12), f"{'red blue'.split()[i % 2]} {'star moon'.split()[i % 2]}", "undo")
            for i in range(12)]  # fmt: skip
    sizes = QFormerConfig(width=16, heads=2, queries=3, intermediate=32, initializer_range=0.2)
    model = build_retriever(
        RetrieverConfig(qformer=sizes, embed_dim=8), build_tokenizer(["red blue star moon undo"]), 6
    )
    config = TrainingConfig(steps=6, batch=6, objective="ptha", log_every=1, precision=precision)
    task = RetrievalTask(model, rows, Features(), config)
    return train(task, config, TorchEngine, device=device)


def test_fp32_training_equals_the_cpu():
    for mine, theirs in zip(history("cuda", "fp32"), history("cpu", "fp32"), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


def test_bf16_training_stays_near_fp32_and_finite():
    rough, exact = history("cuda", "bf16"), history("cuda", "fp32")
    assert rough[0]["loss"] == pytest.approx(exact[0]["loss"], rel=5e-2)
    assert all(np.isfinite(row["loss"]) for row in rough)
