"""The two stages on the embedded world's own CLIP: does composing help, also with poor texts?"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from cirray.data.shapes.corpus import reserved_scene
from cirray.data.shapes.grammar import caption, modification
from cirray.data.shapes.render import render_array
from cirray.data.shapes.scenes import COLOURS, Edit, apply
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.places import SHAPES_CLIP, asset_folder
from cirray.models.words.config import WordMapConfig
from cirray.models.words.word_map import build_word_map
from cirray.training.config import TrainingConfig
from cirray.training.loop import train
from cirray.training.retrieval import RetrievalTask
from cirray.training.torch_engine import TorchEngine
from cirray.training.zeroshot.base import MapSetup
from cirray.training.zeroshot.config import MappingConfig
from cirray.training.zeroshot.mapping import MappingTask
from cirray.types import Triplet

TRAINED, HELD_OUT = 700, 60


class Tokens:
    """The tower's tokens by image id."""

    def __init__(self, tokens):
        self.tokens = tokens

    def get(self, ids):
        return np.stack([self.tokens[name] for name in ids])

    def __contains__(self, name):
        return name in self.tokens


def recolourings(scene):
    """Every edit of the scene that gives one of its objects another colour."""
    for cell in scene.occupied:
        yield from (Edit("recolour", cell, value=name) for name in COLOURS if name != scene.cells[cell].colour)


@pytest.fixture(scope="module")
def world():
    """Triplets, tokens and captions of their images, width; held-out references have all their recolourings there."""
    rng, tower = np.random.default_rng(0), with_tokens(load_vision_tower(asset_folder(SHAPES_CLIP)), "unprojected")
    rows, scenes = [], {}
    for number in range(TRAINED + HELD_OUT):
        scene = reserved_scene(rng, 2, 2)
        edits = list(recolourings(scene))
        chosen = int(rng.integers(len(edits)))
        scenes[f"r-{number}"] = scene
        kept = range(len(edits)) if number >= TRAINED else [chosen]
        scenes |= {f"t-{number}-{place}": apply(edits[place], scene) for place in kept}
        rows.append(
            Triplet(str(number), f"r-{number}", f"t-{number}-{chosen}", modification(scene, edits[chosen], rng))
        )
    images = torch.from_numpy(np.stack([render_array(scene, seed, 48) for seed, scene in enumerate(scenes.values())]))
    tokens = dict(zip(scenes, tower(images).numpy(), strict=True))
    captions = {name: caption(scene, rng) for name, scene in scenes.items()}
    return rows, Tokens(tokens), captions, tower.width


@pytest.fixture(scope="module")
def mapped(world):
    rows, tokens, captions, width = world
    names = tuple(name for row in rows[:TRAINED] for name in (row.reference_id, row.target_id))
    model = WordMapConfig.model_validate({"source": str(asset_folder(SHAPES_CLIP)), "phi": {"dropout": 0.1}})
    retriever = build_word_map(model, width, seed=0)
    loop = {"steps": 80, "batch": 64, "optimizer": {"lr": 1e-3}, "checkpoint_every": None}
    setup = MapSetup(
        retriever, names, tuple(captions[name] for name in names), tokens, MappingConfig.model_validate(loop)
    )
    train(MappingTask(setup), setup.config, TorchEngine)
    return retriever.train_composing()


def recall(retriever, world):
    """Share of held-out queries whose target is first among all recolourings of all held-out references."""
    rows, tokens = world[0][TRAINED:], world[1]
    gallery = [name for name in tokens.tokens if name.startswith("t-") and int(name.split("-")[1]) >= TRAINED]
    retriever.eval()
    with torch.no_grad():
        state = retriever.encode_reference(torch.from_numpy(tokens.get([row.reference_id for row in rows])))
        query = retriever.compose(state, retriever.tokenize([row.modification for row in rows]))
        scores = retriever.score(query, retriever.encode_gallery(torch.from_numpy(tokens.get(gallery))))
    first = [gallery[int(place)] for place in scores.argmax(1)]
    return sum(name == row.target_id for name, row in zip(first, rows, strict=True)) / len(rows)


def composed(mapped, world, rows):
    """The second stage from the first one's weights."""
    retriever = copy.deepcopy(mapped)
    loop = {
        "objective": "composing", "steps": 90, "batch": 64, "one_per_group": False,
        "terms": {"composing": {"max_cosine": 0.98, "hard": 3}}, "optimizer": {"lr": 3e-3},
    }  # fmt: skip
    config = TrainingConfig.model_validate(loop)
    train(RetrievalTask(retriever, rows, world[1], config), config, TorchEngine)
    return retriever


def shuffled(rows, share):
    """Rows of which a share have another row's text."""
    wrong = np.flatnonzero(np.random.default_rng(1).random(len(rows)) < share)
    texts = {int(row): rows[int(wrong[(place + 1) % len(wrong)])].modification for place, row in enumerate(wrong)}
    return [replace(row, modification=texts.get(number, row.modification)) for number, row in enumerate(rows)]


def test_stage_two_beats_stage_one_on_the_same_shape_in_another_colour_also_with_shuffled_texts(mapped, world):
    before = recall(mapped, world)
    after = {share: recall(composed(mapped, world, shuffled(world[0][:TRAINED], share)), world) for share in (0.0, 0.3)}

    assert after[0.0] >= 1.15 * before and after[0.0] > before + 0.05
    assert after[0.3] > before
