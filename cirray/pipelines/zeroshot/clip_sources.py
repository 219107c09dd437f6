"""Batches for a small CLIP's pretraining: random scenes with captions, or a data set's captioned images."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from cirray.core.errors import DataError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.data.benchmark import CirDataset
from cirray.data.images import open_place
from cirray.data.shapes.corpus import reserved_scene
from cirray.data.shapes.grammar import caption, vocabulary
from cirray.data.shapes.render import render_array
from cirray.data.shapes.scenes import Scene, apply, random_edit
from cirray.models.towers.small_clip import SmallClip
from cirray.pipelines.features.vision_sources import CELL_CLASSES, cell_labels
from cirray.pipelines.zeroshot.config import ClipRun
from cirray.training.clip import ClipBatch
from cirray.transforms import build_transform

Source = Callable[[int, int, int], ClipBatch]
OPENINGS = ("", "a photo of", "a picture of", "an image with", "this shows")
"""Openings of captions, also used by pseudo-word prompts."""
_FILLERS = (
    "that", "now", "make", "should", "be", "the", "turn", "into", "change", "with", "of", "is", "there", "to", "object",
)  # fmt: skip
_NOISE = 0.3


def shapes_vocabulary() -> list[str]:
    """The vocabulary of a CLIP of the embedded world: the grammar's, the openings' and the prompts' words."""
    return [*vocabulary(), *" ".join(OPENINGS).split(), *_FILLERS, "photo", ","]


def scene_source(clip: SmallClip, run: ClipRun) -> Source:
    """Fresh reserved scenes, half of them a single edit of the scene before: only captions tell the two apart.

    A pure function of (seed, step, rank). No modification text is ever seen.
    """
    config = run.training

    def source(step: int, rank: int, world: int) -> ClipBatch:
        rng = numpy_generator(config.seed, "clip scenes", step, rank)
        return scene_batch(clip, rng, config.batch // world, run.model.image_size)

    return source


def scene_batch(clip: SmallClip, rng: np.random.Generator, count: int, size: int) -> ClipBatch:
    """Rendered scenes with captions and the classes of every cell."""
    scenes = neighbour_scenes(rng, count)
    images = [render_array(scene, int(rng.integers(2**40)), size) for scene in scenes]
    ids_BT, mask_BT = clip.spell([web_caption(scene, rng) for scene in scenes])
    labels_BPK = torch.tensor([cell_labels(scene) for scene in scenes])
    cells = {name: labels_BPK[:, :, number] for number, name in enumerate(CELL_CLASSES)}
    return ClipBatch(torch.from_numpy(np.stack(images)), ids_BT, mask_BT, cells)


def neighbour_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """`count` different reserved scenes, every second one a single edit of the one before it."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = reserved_scene(rng) if len(scenes) % 2 == 0 else apply(random_edit(scenes[-1], rng), scenes[-1])
        if scene.reserved and scene not in scenes:
            scenes.append(scene)
    return scenes


def web_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the grammar after an opening, sometimes with filler words between."""
    words = f"{OPENINGS[int(rng.integers(len(OPENINGS)))]} {caption(scene, rng)}".split()
    if rng.random() < _NOISE:
        for _ in range(int(rng.integers(1, 5))):
            words.insert(int(rng.integers(len(words) + 1)), _FILLERS[int(rng.integers(len(_FILLERS)))])
    return " ".join(words)


def captioned_source(clip: SmallClip, run: ClipRun, dataset: CirDataset, ids: Sequence[str]) -> Source:
    """Captioned images of a data set, decoded when drawn."""
    transform, config = build_transform(clip.transform), run.training

    def source(step: int, rank: int, world: int) -> ClipBatch:
        rng = np.random.default_rng(derive_seed(config.seed, "clip rows", step, rank))
        rows = rng.choice(len(ids), size=config.batch // world, replace=False)
        chosen = [ids[int(row)] for row in rows]
        images = [transform(open_place(dataset.images.place(name), run.limits)) for name in chosen]
        ids_BT, mask_BT = clip.spell([dataset.captions[name] for name in chosen])
        return ClipBatch(torch.from_numpy(np.stack(images)), ids_BT, mask_BT, {})

    return source


def captioned_ids(dataset: CirDataset, least: int) -> list[str]:
    """Images with a caption, sorted. Raises DataError: when they do not fill a batch."""
    ids = sorted(name for name in dataset.captions if name in dataset.images)
    if len(ids) < least:
        raise DataError(
            f"{dataset.name!r} has {len(ids)} captioned images, a batch takes {least}. Give more captions, or lower "
            "training.batch."
        )
    return ids
