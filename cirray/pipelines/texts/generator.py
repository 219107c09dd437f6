"""Stage 3: train the modification-text generator on the labelled part."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, open_stage
from cirray.core.contents import file_digest
from cirray.core.trees import leaves
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import select_labels
from cirray.data.shapes.scenes import Scene
from cirray.data.shapes.world import SCENES, read_scenes
from cirray.evaluation.texts import judge_generations
from cirray.generators.config import TRAINABLE, GeneratorConfig
from cirray.generators.trainable import TrainableGenerator
from cirray.models.sources.blip2 import open_blip2
from cirray.pipelines.data.datasets import check_leaks, guard_inputs, read_usable
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator_inputs import (
    alignment_task,
    build_generator,
    data_digests,
    read_features,
)
from cirray.pipelines.texts.heldout import TEXTS, write_texts
from cirray.pipelines.texts.judging import is_shapes_world
from cirray.pipelines.training.start import check_sizes
from cirray.training.callbacks import train_stage
from cirray.training.config import LoopConfig
from cirray.training.generation import AlignmentTask, GeneratorTask
from cirray.training.state import Row
from cirray.types import Generation, Pair, Triplet, images_of

WORK, SAMPLES = "work", "samples.jsonl"


@stage_function
def run_generator(run: GeneratorRun) -> Manifest:
    """Train the generator, in this process or on Ray's workers (`ray`); a killed run goes on from its last checkpoint.

    Returns: Manifest of kind "generator": metrics `token_loss` (held-out answers, nats per token), `trained` and
    `zero_shot` (per direction: share of finished texts and, where scenes are known, exact edits, direction, per kind).

    Raises ArtifactError: an input is missing, or another run's output is at `out`; ConfigError: a given size that
    contradicts `qformer_source`; IndexMismatchError: the features were made by another vision tower than the towers';
    DataError: no usable triplet, or a vocabulary that does not fit.
    """
    inputs = _source_digest(run)
    dataset = read_usable(run.data, run.features)
    labelled = select_labels(dataset, run.labels)
    seen = images_of(labelled.train) | set(labelled.captions)
    guard = check_leaks(run.guard, seen, run.allow_leaks, "The generator's training data")
    inputs |= {**data_digests(run, dataset, labelled), **guard_inputs(guard), "scenes": _scenes_digest(run)}
    stage = open_stage(run, "generator", inputs, _kept(run))
    if stage.finished:
        return stage.finished
    features = read_features(run, dataset, labelled)
    model = build_generator(run, _rest_device(run))
    scenes = _scenes(run)
    aligned, metrics = _align(run, stage, model, alignment_task(run, model, features, labelled)), dict[str, Any]()
    metrics["alignment"] = aligned
    if run.zero_shot and run.evaluate_pairs:
        with _at_work(run, model):
            made, _ = write_texts(run, stage, model, labelled.held_out, features)
            metrics["zero_shot"], _ = judge_texts(labelled.held_out, made, scenes)
    task = GeneratorTask(model, labelled.train, features, run.training)
    if run.training.steps:
        history = _train(run, stage, model, task, "train the generator")
        metrics["train_loss"] = round(history[-1]["loss"], 4)
    with _at_work(run, model):
        made, metrics["token_loss"] = write_texts(run, stage, model, labelled.held_out, features, answers=True)
        metrics["trained"], samples = judge_texts(labelled.held_out, made, scenes)
    TRAINABLE.get(run.generator.kind).save(model.cpu(), stage.local)
    storage.write_bytes(storage.join(str(stage.local), SAMPLES), _lines(samples))
    shutil.rmtree(stage.local / WORK, ignore_errors=True)
    storage.remove(storage.join(stage.work_uri, TEXTS))
    counts = {"labels": len(labelled.train), "captions": len(labelled.captions), "held_out": len(labelled.held_out)}
    extra = {"prompt_version": model.prompt_version, **model.told(), "saw": {dataset.name: len(labelled.train)}}
    return stage.publish(counts, metrics, {**extra, **guard, "encoder_digest": features.info.encoder_digest})


def _source_digest(run: GeneratorRun) -> dict[str, str]:
    if not run.qformer_source:
        return {}
    source = open_blip2(run.qformer_source)
    network = run.generator.settings
    if isinstance(network, GeneratorConfig):
        check_sizes(network.qformer, source, leaves(network.given()), "generator.settings")
    return {"qformer_source": source.digest}


def _kept(run: GeneratorRun) -> tuple[str, ...]:
    """Patterns of files to resume from: checkpoints and finished loops, or anything if they are stored elsewhere."""
    outside = run.ray is not None and run.ray.enabled and run.ray.storage
    if outside:
        return ("*",)
    return (f"{WORK}/*checkpoints/*", f"{WORK}/*done.json", "ray/*/checkpoint_*/*", f"{TEXTS}/*/*.json")


def _train(
    run: GeneratorRun, stage: Stage, model: TrainableGenerator, task: AlignmentTask | GeneratorTask, title: str
) -> list[Row]:
    """One of the two loops, here or on workers, with equal numbers; the model holds the result."""
    loop: LoopConfig
    if isinstance(task, AlignmentTask):
        loop, folder = run.alignment_training, stage.local / WORK / task.stage
    else:
        loop, folder = run.training, stage.local / WORK / "training"
    if run.ray is None or not run.ray.enabled:
        return train_stage(task, loop, folder, title)
    from cirray.pipelines.texts.generator_ray import train_on_workers

    return train_on_workers(run, stage, model, task.stage, title, folder)


def _align(
    run: GeneratorRun, stage: Stage, model: TrainableGenerator, given: tuple[AlignmentTask | None, dict[str, Any]]
) -> dict[str, Any]:
    task, facts = given
    if task is None:
        return facts
    last = _train(run, stage, model, task, "align with captions")[-1]
    return facts | {name: round(value, 5) for name, value in last.items() if name in ("loss", "image", "difference")}


def _rest_device(run: GeneratorRun) -> str:
    """Device of this process's model during training: quantised weights stay, others leave the GPU."""
    workers = run.ray is not None and run.ray.enabled
    return "cpu" if workers and run.language_quantization == "none" else run.device


@contextmanager
def _at_work(run: GeneratorRun, model: TrainableGenerator) -> Iterator[None]:
    """The model on the run's device while texts are written."""
    rest = _rest_device(run)
    if rest != run.device:
        model.to(run.device)
    yield
    if rest != run.device:
        model.to(rest)


def judge_texts(
    triplets: Sequence[Triplet], generations: Sequence[Generation], scenes: Mapping[str, Scene] | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Judge the texts of the first held-out pairs, if scenes are known.

    Returns: Metrics, and one sample row per pair.
    """
    chosen = triplets[: len(generations)]
    pairs = [Pair(row.triplet_id, row.reference_id, row.target_id) for row in chosen]
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


def _scenes(run: GeneratorRun) -> dict[str, Scene] | None:
    root = _scenes_root(run)
    return read_scenes(storage.local_path(root)) if root else None


def _scenes_root(run: GeneratorRun) -> str:
    """Root of the shapes world that judges the texts; empty: none."""
    root = run.data.folder.root if run.scenes == "auto" else run.scenes
    return root if storage.is_local(root) and (run.scenes != "auto" or is_shapes_world(root)) else ""


def _scenes_digest(run: GeneratorRun) -> str:
    root = _scenes_root(run)
    return file_digest(storage.join(root, SCENES)) if is_shapes_world(root) else root


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
