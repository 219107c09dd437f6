"""Stage 3: the modification-text generator, from the small labelled part alone."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirray.core import storage
from cirray.core.artifacts import Manifest, localize, open_stage, read_manifest
from cirray.core.errors import DataError, IndexMismatchError
from cirray.core.seeding import derive_seed
from cirray.data.benchmark import CirDataset
from cirray.data.images import open_place
from cirray.data.readers import read_dataset
from cirray.data.shapes.corpus import Bags, caption_bags, difference_bags
from cirray.data.shapes.scenes import Scene
from cirray.data.shapes.world import read_scenes
from cirray.data.transforms import build_transform
from cirray.evaluation.texts import judge_generations
from cirray.features.store import FeatureStore
from cirray.generators.base import FeatureLookup
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.sources import generator_from
from cirray.generators.store import save_generator
from cirray.generators.writer import TextWriter
from cirray.models.sources.blip2 import open_blip2
from cirray.models.towers.hf_blip2 import VisionTower, load_vision_tower
from cirray.models.towers.language import language_dtype, load_language_model
from cirray.pipelines.config import GeneratorRun
from cirray.pipelines.leaks import check_leaks, images_of
from cirray.pipelines.towers import LANGUAGE, VISION, train_stage
from cirray.training.generation import AlignmentTask, GeneratorTask
from cirray.types import Pair, Triplet

WORK, SAMPLES = "work", "samples.jsonl"
_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Labelled:
    """What the generator may see: training triplets, captions of their images, and held-out triplets."""

    train: tuple[Triplet, ...]
    held_out: tuple[Triplet, ...]
    captions: Mapping[str, str]


def run_generator(run: GeneratorRun) -> Manifest:
    """Train the generator; a killed run goes on from its last checkpoint.

    Returns:
        Manifest of kind "generator": metrics `token_loss` (held-out answers, nats per token), `trained` and `zero_shot`
        (per direction: share of finished texts and, where scenes are known, exact edits, direction, per kind).

    Raises:
        ArtifactError: an input is missing, or another run's output stands at `out`.
        IndexMismatchError: the features were made by another vision tower than the towers'.
        DataError: no usable triplet, or a vocabulary that does not fit.
    """
    inputs = {"towers": read_manifest(run.towers, "towers").digest}
    inputs |= {f"features-{number}": read_manifest(uri, "features").digest for number, uri in enumerate(run.features)}
    if run.qformer_source:
        inputs["qformer_source"] = open_blip2(run.qformer_source).digest
    guard = _guard(run)
    stage = open_stage(run.out, "generator", run.to_dict(), inputs)
    if stage.finished:
        return stage.finished
    dataset = read_dataset(run.data)
    labelled = select_labels(dataset, run.labels)
    features = _features(run, dataset, labelled)
    model = build_generator(run, features)
    scenes = _scenes(run)
    work = stage.local / WORK
    aligned = _align(run, model, features, labelled, work / "alignment")
    metrics: dict[str, Any] = {"alignment": aligned}
    if run.zero_shot and run.evaluate_pairs:
        metrics["zero_shot"], _ = evaluate_texts(run, model, labelled.held_out, features, scenes)
    task = GeneratorTask(model, labelled.train, features, run.training)
    if run.training.steps:
        history = train_stage(task, run.training, work / "training", "train the generator")
        metrics["train_loss"] = round(history[-1]["loss"], 4)
    metrics["token_loss"] = token_loss(task, model, labelled.held_out)
    metrics["trained"], samples = evaluate_texts(run, model, labelled.held_out, features, scenes)
    save_generator(model.cpu(), stage.local)
    storage.write_bytes(storage.join(str(stage.local), SAMPLES), _lines(samples))
    shutil.rmtree(work, ignore_errors=True)
    counts = {"labels": len(labelled.train), "captions": len(labelled.captions), "held_out": len(labelled.held_out)}
    extra = {"prompt_version": run.model.prompt, "tuning": run.model.tuning, "saw": {dataset.name: len(labelled.train)}}
    return stage.publish(counts, metrics, {**extra, **guard, "encoder_digest": features.info.encoder_digest})


def _guard(run: GeneratorRun) -> dict[str, Any]:
    if not run.guard:
        return {}
    labelled = select_labels(read_dataset(run.data), run.labels)
    seen = images_of(labelled.train) | set(labelled.captions)
    return check_leaks(run.guard, seen, run.allow_leaks, "The generator's training data")


def select_labels(dataset: CirDataset, labels: int | None) -> Labelled:
    """The first `labels` training triplets in whole groups, captions of their images, and the held-out triplets.

    Raises:
        DataError: when the data set has no training triplets.
    """
    train = dataset.split("train")
    if not train:
        raise DataError(f"{dataset.name!r} has no triplets of split 'train'; the generator learns from labelled ones.")
    if labels is not None and labels < len(train):
        groups = {row.group_id for row in train[:labels] if row.group_id}
        train = tuple(row for number, row in enumerate(train) if number < labels or row.group_id in groups)
    images = {image for row in train for image in (row.reference_id, row.target_id)}
    captions = {name: text for name, text in dataset.captions.items() if labels is None or name in images}
    return Labelled(train, dataset.split("val"), captions)


def build_generator(run: GeneratorRun, features: FeatureLookup) -> ModificationTextModel:
    """A network around a language model, with random start weights or those of a BLIP-2 or InstructBLIP checkpoint.

    Raises:
        ArtifactError: when the checkpoint, or its projection, does not fit the towers or the language model.
    """
    source_of = run.language or localize(run.towers, "towers") / LANGUAGE
    dtype = language_dtype(run.language_dtype)
    language = load_language_model(source_of, dtype, run.language_quantization, run.device)
    width = load_vision_tower(localize(run.towers, "towers") / VISION).width
    torch.manual_seed(derive_seed(run.seed, "generator"))
    if run.qformer_source:
        source = open_blip2(run.qformer_source)
        return generator_from(source, run.model, language, width, run.source_projection).to(run.device)
    return ModificationTextModel(run.model, language, width).to(run.device)


@torch.inference_mode()
def token_loss(task: GeneratorTask, model: ModificationTextModel, triplets: Sequence[Triplet]) -> float | None:
    """Mean cross-entropy per answer token of held-out triplets, in nats; None without any."""
    model.eval()
    total, tokens, device = 0.0, 0.0, model.projection.weight.device
    for begin in range(0, len(triplets), _EVALUATION_BATCH):
        batch = task.batch(triplets[begin : begin + _EVALUATION_BATCH]).to(device)
        loss = model(batch.reference_BPD, batch.target_BPD, batch.answers)
        total, tokens = total + float(loss.total), tokens + float(loss.tokens)
    return round(total / tokens, 4) if tokens else None


def evaluate_texts(
    run: GeneratorRun,
    model: ModificationTextModel,
    triplets: Sequence[Triplet],
    features: FeatureLookup,
    scenes: Mapping[str, Scene] | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write texts for held-out pairs, forward and reverse, and judge them where scenes are known.

    Returns:
        Metrics, and one sample row per pair.
    """
    chosen = triplets[: run.evaluate_pairs]
    pairs = [Pair(row.triplet_id, row.reference_id, row.target_id) for row in chosen]
    generations = TextWriter(model, run.decoding).generate(pairs, features)
    samples = [
        {"reference": row.reference_id, "target": row.target_id, "human": row.modification, "generated": made.text,
         "reverse": made.reverse_text, "logprob": round(made.logprob, 4), "error": made.error}
        for row, made in zip(chosen, generations, strict=True)
    ]  # fmt: skip
    metrics: dict[str, Any] = {"pairs": len(pairs), "failed": sum(made.text is None for made in generations)}
    if scenes is not None and pairs:
        judged = judge_generations(pairs, generations, scenes)
        metrics |= {name: quality.to_dict() for name, quality in judged.items()}
    return metrics, samples


def encode_live(tower: VisionTower, dataset: CirDataset, ids: Sequence[str], run: GeneratorRun) -> FeatureStore:
    """Features of a few images without a features artifact, kept in memory as the store keeps them (fp16)."""
    from cirray.features.store import FeatureInfo

    transform, blocks = build_transform(tower.transform), []
    with torch.inference_mode():
        for begin in range(0, len(ids), _EVALUATION_BATCH):
            names = ids[begin : begin + _EVALUATION_BATCH]
            images = [transform(open_place(dataset.images.place(name), run.limits)) for name in names]
            blocks.append(tower(torch.from_numpy(np.stack(images))).half().numpy())
    info = FeatureInfo(tower.digest, transform.digest, (tower.num_tokens, tower.width))
    return FeatureStore(blocks, ids, info)


def _features(run: GeneratorRun, dataset: CirDataset, labelled: Labelled) -> FeatureStore:
    if run.features:
        store, wanted = FeatureStore.open_many(list(run.features)), read_manifest(run.towers).extra["encoder_digest"]
        if store.info.encoder_digest != wanted:
            raise IndexMismatchError(
                f"Features {list(run.features)} were made by vision tower {store.info.encoder_digest}, the towers at "
                f"{run.towers!r} hold {wanted}. Embed the images with these towers."
            )
        return store
    rows = (*labelled.train, *labelled.held_out)
    ids = {image for row in rows for image in (row.reference_id, row.target_id)} | set(labelled.captions)
    tower = load_vision_tower(localize(run.towers, "towers") / VISION)
    return encode_live(tower, dataset, sorted(ids), run)


def _align(
    run: GeneratorRun, model: ModificationTextModel, features: FeatureLookup, labelled: Labelled, work: Path
) -> dict[str, Any]:
    if run.alignment == "none":
        return {"objective": "none"}
    known, features = _alignment_data(run, features, labelled)
    captions = {name: text for name, text in known.items() if name in features}
    bags = {name: found for name, text in captions.items() if (found := caption_bags(text)) is not None}
    objective = _objective(run, model, bags, captions)
    if objective == "none":
        return {"objective": "none"}
    by_cell = objective == "bags"
    pairs = caption_pairs(labelled.train, bags) if by_cell and "difference" in run.model.passes else None
    task = AlignmentTask(model, features, run.alignment_training, bags if by_cell else None, captions, pairs)
    history = train_stage(task, run.alignment_training, work, "align with captions")
    losses = {name: round(value, 5) for name, value in history[-1].items() if name in ("loss", "image", "difference")}
    return {"objective": objective, **losses, "captions": len(captions), "pairs": len(pairs or {})}


def _alignment_data(
    run: GeneratorRun, features: FeatureLookup, labelled: Labelled
) -> tuple[Mapping[str, str], FeatureLookup]:
    """Captions and features of the generator's own data, or of another data set (VDG's first stage)."""
    other = run.alignment_training
    if other.data is None:
        return labelled.captions, features
    store, wanted = FeatureStore.open_many(list(other.features)), read_manifest(run.towers).extra["encoder_digest"]
    if store.info.encoder_digest != wanted:
        raise IndexMismatchError(
            f"The features of alignment_training {list(other.features)} were made by another vision tower than that of "
            f"{run.towers!r}. Embed the images with these towers."
        )
    return read_dataset(other.data).captions, store


def caption_pairs(triplets: Sequence[Triplet], bags: Mapping[str, Bags]) -> dict[tuple[str, str], Bags]:
    """What the captions of two images of one group differ in, for every such pair; no modification text is read."""
    groups: dict[str, set[str]] = {}
    for row in triplets:
        groups.setdefault(row.group_id or row.triplet_id, set()).update((row.reference_id, row.target_id))
    pairs: dict[tuple[str, str], Bags] = {}
    for images in groups.values():
        known = sorted(image for image in images if image in bags)
        pairs |= {pair: difference_bags(bags[pair[0]], bags[pair[1]]) for pair in combinations(known, 2)}
    return pairs


def _objective(
    run: GeneratorRun, model: ModificationTextModel, bags: Mapping[str, Bags], captions: Mapping[str, str]
) -> str:
    if run.alignment != "auto":
        if not captions or (run.alignment == "bags" and len(bags) < len(captions)):
            raise DataError(
                f"alignment={run.alignment!r} cannot be done: {len(captions)} captions, {len(bags)} of them in the "
                "words of the embedded world (bags needs all). Use alignment=auto or none."
            )
        return run.alignment
    if not captions:
        return "none"
    fits = len(bags) == len(captions) and all(len(row) == model.config.qformer.queries for row in bags.values())
    known = set(model.language.tokenizer.get_vocab())
    return "bags" if fits and all(word in known for row in bags.values() for bag in row for word in bag) else "captions"


def _scenes(run: GeneratorRun) -> dict[str, Scene] | None:
    root = run.data.folder.root if run.scenes == "auto" else run.scenes
    if not root or not storage.is_local(root):
        return None
    folder = storage.local_path(root)
    if run.scenes == "auto" and not (folder / "scenes.jsonl").is_file():
        return None
    return read_scenes(folder)


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
