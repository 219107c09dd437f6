import numpy as np
import pytest
import torch

from cirray.data.config import TransformConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.pipelines.features.vision_sources import CELL_CLASSES, cell_batch, cell_source
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine
from cirray.training.tower_config import VisionTrainingConfig
from cirray.training.vision import VisionBatch, VisionLearner, VisionTask, caption_words, word_labels

SMALL = VisionTowerConfig(width=32, layers=1, heads=2, intermediate=32)


@pytest.fixture
def tower():
    torch.manual_seed(0)
    return build_vision_tower(SMALL, TransformConfig())


def test_dense_heads_learn_and_the_saved_tower_has_none(tower, tmp_path):
    config = VisionTrainingConfig(steps=40, batch=16, log_every=1, optimizer={"lr": 1e-2})
    task = VisionTask(tower, CELL_CLASSES, cell_source(SMALL, config))
    history = train(task, config, TorchEngine)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    accuracy = task.accuracy(cell_batch(SMALL, np.random.default_rng(1), 20))
    assert accuracy["place"] > 0.5 and set(accuracy) == {"place", *CELL_CLASSES}
    task.save(task.model(), tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < 4.2 * sum(w.numel() for w in tower.parameters())


def test_smaller_patches_take_the_label_of_their_cell():
    fine = VisionTowerConfig(patch_size=8)
    rng = np.random.default_rng(3)
    batch = cell_batch(fine, rng, 5)
    coarse = cell_batch(SMALL, np.random.default_rng(3), 5)
    labels = batch.cells["colour"].reshape(5, 6, 6)
    assert torch.equal(labels[:, ::2, ::2].reshape(5, 9), coarse.cells["colour"])
    assert torch.equal(labels[:, ::2], labels[:, 1::2])


def test_caption_words_are_learnt_where_there_are_no_cells(tower):
    captions = {str(n): f"a {'red' if n % 2 else 'blue'} thing" for n in range(20)}
    words = caption_words(captions)
    assert sorted(words) == ["blue", "red"]
    labels = word_labels([captions["0"], captions["1"]], words)
    assert labels.sum(1).tolist() == [1, 1]
    images = torch.zeros(2, 48, 48, 3, dtype=torch.uint8)
    images[0, ..., 2], images[1, ..., 0] = 200, 200
    learner = VisionLearner(tower, {}, len(words))
    batch = VisionBatch(images, {}, labels)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        output = learner(batch)
        losses.append(float(output.terms["words"]))
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
