"""Batches for the vision tower's pretraining: random scenes with their cells, or captioned images."""

from collections.abc import Callable

import numpy as np
import torch

from cirray.core.errors import ConfigError, DataError
from cirray.core.progress import progress
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.data.benchmark import CirDataset
from cirray.data.images import open_place
from cirray.data.readers import read_dataset
from cirray.data.shapes.corpus import reserved_scene
from cirray.data.shapes.render import render_array
from cirray.data.shapes.scenes import COLOURS, SHAPES, SIZES, Scene
from cirray.models.config import VisionTowerConfig
from cirray.pipelines.data.datasets import captioned_digest
from cirray.pipelines.features.config import TowersRun
from cirray.training.tower_config import VisionTrainingConfig
from cirray.training.vision import IGNORE, VisionBatch, caption_words, word_labels
from cirray.transforms import build_transform

CELL_CLASSES = {"object": 2, "colour": len(COLOURS), "shape": len(SHAPES), "size": len(SIZES)}
"""Per-patch heads of the embedded world and their number of classes."""

Source = Callable[[int, int, int], VisionBatch]
_GRID, _MOST_IMAGES = 3, 20_000


def cell_source(model: VisionTowerConfig, config: VisionTrainingConfig) -> Source:
    """Fresh reserved scenes at every step, a pure function of (seed, step, rank).

    Raises ConfigError when a patch is not inside one cell of the scene.
    """
    if (model.image_size // _GRID) % model.patch_size or model.image_size % _GRID:
        raise ConfigError(
            f"vision_model.patch_size {model.patch_size} does not divide a cell of {model.image_size / _GRID:g} px; "
            f"use a divisor of {model.image_size // _GRID}, or vision_training.objective=captions."
        )

    def source(step: int, rank: int, world: int) -> VisionBatch:
        rng = numpy_generator(config.seed, "vision scenes", step, rank)
        return cell_batch(model, rng, config.batch // world, config.clutter)

    return source


def cell_batch(model: VisionTowerConfig, rng: np.random.Generator, count: int, clutter: int = 0) -> VisionBatch:
    """Rendered reserved scenes, with `clutter` specks each, and the labels of every patch's cell."""
    scenes = [reserved_scene(rng) for _ in range(count)]
    images = [render_array(scene, int(rng.integers(2**40)), model.image_size, clutter) for scene in scenes]
    cell_P = _cell_of_patch(model)
    labels_BCK = torch.tensor([cell_labels(scene) for scene in scenes])
    cells = {name: labels_BCK[:, cell_P, number] for number, name in enumerate(CELL_CLASSES)}
    return VisionBatch(torch.from_numpy(np.stack(images)), cells)


def caption_source(run: TowersRun) -> tuple[Source, int]:
    """Captioned images of the run's data, read once; and the number of caption words that are predicted.

    Raises DataError when there are too few captions to learn words from.
    """
    dataset, ids = _captioned(run)
    words = caption_words({name: dataset.captions[name] for name in ids})
    if not words:
        raise DataError(
            f"{dataset.name!r} has {len(ids)} captioned images and no word that 5 captions share; "
            "give captions, or name a pretrained tower with vision=FOLDER."
        )
    transform, images = build_transform(run.transform), []
    with progress("read captioned images", len(ids), "images") as advance:
        for name in ids:
            images.append(transform(open_place(dataset.images.place(name), run.limits)))
            advance()
    images_NHWC = torch.from_numpy(np.stack(images))
    words_NV = word_labels([dataset.captions[name] for name in ids], words)
    return _stored(images_NHWC, words_NV, run.vision_training), len(words)


def captions_digest(run: TowersRun) -> str:
    """Digest of what `caption_source` reads: ids, captions and the bytes of the images."""
    return captioned_digest(*_captioned(run), run.limits)


def _captioned(run: TowersRun) -> tuple[CirDataset, list[str]]:
    """The data set, and those of its captioned images that are trained on, sorted."""
    dataset = read_dataset(run.data)
    ids = sorted(name for name in dataset.captions if name in dataset.images)
    rng = numpy_generator(run.vision_training.seed, "captioned images")
    return dataset, [ids[int(row)] for row in np.sort(rng.permutation(len(ids))[:_MOST_IMAGES])]


def _stored(images_NHWC: torch.Tensor, words_NV: torch.Tensor, config: VisionTrainingConfig) -> Source:
    def source(step: int, rank: int, world: int) -> VisionBatch:
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "captioned batch", step, rank))
        rows_B = torch.randint(len(images_NHWC), (config.batch // world,), generator=generator)
        return VisionBatch(images_NHWC[rows_B], {}, words_NV[rows_B])

    return source


def _cell_of_patch(model: VisionTowerConfig) -> torch.Tensor:
    """Cell number of every patch, row by row."""
    side, step = model.image_size // model.patch_size, model.image_size // _GRID // model.patch_size
    line_S = torch.arange(side) // step
    return (line_S[:, None] * _GRID + line_S[None, :]).flatten()


def cell_labels(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Classes of every cell: object or not, colour, shape, size; -100 where there is no object."""
    return [
        (0, IGNORE, IGNORE, IGNORE)
        if thing is None
        else (1, COLOURS.index(thing.colour), SHAPES.index(thing.shape), SIZES.index(thing.size))
        for thing in scene.cells
    ]
