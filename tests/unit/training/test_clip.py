"""The small CLIP's pretraining: contrast and dense heads lower the loss; the shipped one finds captions."""

import numpy as np
import torch

from cirray.core.config import validate
from cirray.core.seeding import numpy_generator
from cirray.data.config import TransformConfig
from cirray.models.text import build_tokenizer, load_tokenizer
from cirray.models.towers.places import SHAPES_CLIP, asset_folder
from cirray.models.towers.small_clip import SmallClip, build_clip
from cirray.pipelines.features.vision_sources import CELL_CLASSES
from cirray.pipelines.zeroshot.clip import found_share, neighbour_scenes, scene_batch, scene_source, shapes_vocabulary
from cirray.pipelines.zeroshot.config import ClipRun
from cirray.training.clip import ClipLearner, ClipTask
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine

SMALL = {
    "source": "train",
    "model": {"vision_width": 16, "text_width": 16, "embed_dim": 16, "vision_layers": 1, "text_layers": 1},
    "training": {"steps": 30, "batch": 16, "log_every": 1, "checkpoint_every": None},
}  # fmt: skip


def test_contrast_and_heads_lower_their_loss():
    run = validate(ClipRun, SMALL)
    torch.manual_seed(0)
    clip = build_clip(run.model, build_tokenizer(shapes_vocabulary()), run.transform)
    learner = ClipLearner(clip, CELL_CLASSES, 9, 16, 16)
    history = train(ClipTask(learner, scene_source(clip, run), 1.0), run.training, TorchEngine)
    late, early = (np.mean([row["cells"] for row in rows]) for rows in (history[-5:], history[:5]))
    assert late < 0.9 * early and set(history[0]) >= {"contrast", "cells"}


def test_every_second_scene_is_an_edit_of_the_one_before_and_none_stands_in_a_world():
    scenes = neighbour_scenes(np.random.default_rng(0), 20)
    assert len(set(scenes)) == 20 and all(scene.reserved for scene in scenes)
    changed = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in _pairs(scenes)]
    assert set(changed) <= {1, 2}


def test_the_shipped_clip_finds_captions_among_scenes_a_single_edit_apart():
    from transformers import CLIPModel

    folder = asset_folder(SHAPES_CLIP)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    clip = SmallClip(model, load_tokenizer(folder), TransformConfig())
    found = found_share(clip, scene_batch(clip, numpy_generator(3, "fresh"), 200, 48))
    assert found["image_to_text_R@1"] > 0.9 and found["text_to_image_R@1"] > 0.8
    words = load_tokenizer(folder).get_vocab()
    assert all(word in words for word in shapes_vocabulary())


def _pairs(scenes):
    return [(scenes[row].cells, scenes[row + 1].cells) for row in range(0, len(scenes), 2)]
