"""A small CLIP as towers: shipped or trained here, on images and captions alone."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import DataError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.data.images import open_place
from cirray.data.readers import read_dataset
from cirray.data.shapes.corpus import reserved_scene
from cirray.data.shapes.grammar import caption, vocabulary
from cirray.data.shapes.render import render_array
from cirray.data.shapes.scenes import Scene, apply, random_edit
from cirray.models.text import build_tokenizer
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.places import SHAPES_CLIP, asset_folder
from cirray.models.towers.small_clip import SmallClip, build_clip
from cirray.pipelines.data.datasets import captioned_digest
from cirray.pipelines.features.towers import VISION
from cirray.pipelines.features.vision_sources import CELL_CLASSES, cell_labels
from cirray.pipelines.zeroshot.config import ClipRun
from cirray.training.callbacks import train_stage
from cirray.training.clip import ClipBatch, ClipLearner, ClipTask
from cirray.transforms import build_transform

CLIP, WORK = "clip", "work-clip"


@stage_function
def run_clip(run: ClipRun) -> Manifest:
    """Make the towers artifact; a killed training goes on from its last checkpoint.

    Returns: Manifest of kind "towers"; metrics of a trained one: how often, among `judged` fresh pairs, an image finds
    its caption first (`image_to_text_R@1`) and a caption its image.

    Raises ArtifactError when another run's output is at `out`, and DataError when `data` has too few captioned images.
    """
    stage = open_stage(run, "towers", {"data": _data_digest(run)}, [f"{WORK}/checkpoints/*"])
    if stage.finished:
        return stage.finished
    folder = stage.local / CLIP
    metrics: dict[str, Any] = {}
    if run.source == "asset":
        shutil.copytree(asset_folder(SHAPES_CLIP), folder, dirs_exist_ok=True)
    else:
        clip, metrics = _train(run, stage.local / WORK)
        clip.save(folder)
        shutil.rmtree(stage.local / WORK, ignore_errors=True)
    tower = with_tokens(load_vision_tower(folder), run.tokens)
    tower.save(stage.local / VISION)
    extra = {"encoder_digest": tower.digest, "source": run.source}
    return stage.publish({"vision_weights": sum(item.numel() for item in tower.model.parameters())}, metrics, extra)


def found_share(clip: SmallClip, batch: ClipBatch) -> dict[str, float]:
    """How often images and captions of a batch find each other first."""
    with torch.inference_mode():
        image_BD = functional.normalize(clip.look(batch.images_BHWC)[0], dim=-1)
        text_BD = functional.normalize(clip.read(batch.ids_BT, batch.mask_BT), dim=-1)
    scores_BB, own_B = image_BD @ text_BD.T, torch.arange(len(image_BD), device=image_BD.device)
    return {
        "image_to_text_R@1": round(float((scores_BB.argmax(1) == own_B).float().mean()), 4),
        "text_to_image_R@1": round(float((scores_BB.argmax(0) == own_B).float().mean()), 4),
    }


def _data_digest(run: ClipRun) -> str:
    """Digest of the captioned images that are trained on; empty where none are."""
    if run.source != "train" or run.corpus != "data":
        return ""
    dataset = read_dataset(run.data)
    return captioned_digest(dataset, captioned_ids(dataset, run.training.batch), run.limits)


def _train(run: ClipRun, work: Path) -> tuple[SmallClip, dict[str, Any]]:
    torch.manual_seed(derive_seed(run.training.seed, "small clip"))
    if run.corpus == "shapes":
        clip = build_clip(run.model, build_tokenizer(shapes_vocabulary()), run.transform)
        source, cells = scene_source(clip, run), CELL_CLASSES
    else:
        dataset = read_dataset(run.data)
        ids = captioned_ids(dataset, run.training.batch)
        clip = build_clip(run.model, build_tokenizer(dataset.captions[name] for name in ids), run.transform)
        source, cells = captioned_source(clip, run, dataset, ids), {}
    patches = (run.model.image_size // run.model.patch_size) ** 2
    learner = ClipLearner(clip, cells, patches, run.model.vision_width, run.model.embed_dim).to(run.device)
    task = ClipTask(learner, source, run.training.dense if cells else 0.0)
    train_stage(task, run.training, work, "train a small CLIP")
    clip = learner.clip.eval().cpu()
    if run.corpus != "shapes" or not run.judged:
        return clip, {}
    rng: np.random.Generator = numpy_generator(run.training.seed, "clip evaluation")
    return clip, found_share(clip, scene_batch(clip, rng, run.judged, run.model.image_size))


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
