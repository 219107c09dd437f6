"""A small CLIP as towers: shipped or trained here, on images and captions alone."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.core.unfinished import stage_function
from cirray.data.readers import read_dataset
from cirray.models.text import build_tokenizer
from cirray.models.towers.assets import SHAPES_CLIP, asset_folder
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.small_clip import SmallClip, build_clip
from cirray.pipelines.data.datasets import captioned_digest
from cirray.pipelines.features.towers import VISION, train_stage
from cirray.pipelines.features.vision_sources import CELL_CLASSES
from cirray.pipelines.zeroshot.clip_sources import (
    captioned_ids,
    captioned_source,
    scene_batch,
    scene_source,
    shapes_vocabulary,
)
from cirray.pipelines.zeroshot.config import ClipRun
from cirray.training.clip import ClipBatch, ClipLearner, ClipTask

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
