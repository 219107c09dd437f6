"""Stages 5 and 6: pretraining and fine-tuning, on Ray Train or in this process, with equal numbers."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cirray.core.artifacts import Manifest, Stage, check_place, is_complete, open_stage, read_manifest
from cirray.core.unfinished import stage_function
from cirray.pipelines.data.datasets import check_leaks, guard_inputs
from cirray.pipelines.training.config import SLICE, SPLIT, TrainRun
from cirray.pipelines.training.inputs import (
    MODEL,
    VISION,
    TrainInputs,
    input_digests,
    keep_tower,
    read_inputs,
)
from cirray.pipelines.training.job import (
    Clock,
    ExportModel,
    TrainJob,
    build_job,
    check_job,
    title_of,
)
from cirray.pipelines.training.start import check_model_fields
from cirray.training.callbacks import CHECKPOINTS, HISTORY, train_stage
from cirray.training.loop import Callback
from cirray.training.selection import best_row
from cirray.training.state import Row
from cirray.training.trackers import check_trackers, open_trackers


@stage_function
def run_train(run: TrainRun, callbacks: Sequence[Callback] = (), reports: Sequence[Any] = ()) -> Manifest:
    """Train a retriever; a killed run goes on from its last checkpoint when it is started again.

    `callbacks` are further ones of the loop, where it runs in this process (`ray.enabled: false`); `reports` are Ray
    Train's own, where it runs on workers.

    Returns: Manifest of kind "checkpoint": `model/` (network, tokenizer, vision tower), `history.jsonl`,
    `tensorboard/`; counts of rows by source; metrics `loss` and, with held-out triplets, `val_R@1` and so on, of the
    weights that were kept: the last step's, or with `validation.keep` those of count `kept_step`.

    Raises ArtifactError, ConfigError or DataError before anything starts, for inputs that cannot be used.
    """
    check_model_fields(run)
    check_place(run, "checkpoint")
    check_trackers(run.trackers)
    inputs = read_inputs(run)
    guard = check_leaks(run.guard, inputs.triplets.images(), run.allow_leaks, "The training data")
    digests = {**input_digests(run, inputs), **guard_inputs(guard)}
    finished = open_stage(run, "checkpoint", digests).finished if is_complete(run.out) else None
    if finished:
        return finished
    job = None if run.ray.enabled else build_job(run, inputs, run.device)
    features = job.features if job else check_job(run, inputs)
    stage = open_stage(run, "checkpoint", digests, _kept(run))  # after every check: --restart throws work away
    if stage.finished:
        return stage.finished
    tower = keep_tower(run, features, stage.local / MODEL / VISION)
    if job:
        history, rate = train_here(run, stage, job, callbacks)
    else:
        from cirray.pipelines.training.retriever_ray import train_on_ray

        history, rate = train_on_ray(run, stage, inputs, reports)
    return _publish(
        run, stage, inputs, history, {"samples_per_second": round(rate, 1), "encoder_digest": tower, **guard}
    )


def _kept(run: TrainRun) -> tuple[str, ...]:
    """Patterns of files to resume from: checkpoints, or anything if they are stored elsewhere."""
    outside = run.ray.enabled and run.ray.storage
    return ("*",) if outside else (f"{CHECKPOINTS}/*", "ray/*/checkpoint_*/*")


def train_here(run: TrainRun, stage: Stage, job: TrainJob, callbacks: Sequence[Callback]) -> tuple[list[Row], float]:
    """Train in this process; returns the history and the samples per second."""
    clock = Clock()
    trackers = open_trackers(run.trackers, stage.local, stage.uri, run.to_dict())
    more = [*trackers, ExportModel(stage.local / MODEL), *callbacks]
    measures = [clock, *job.measures]
    history = train_stage(job.task, run.training, stage.local, title_of(run), measures, more, run.device)
    return history, clock.rate


def _publish(
    run: TrainRun, stage: Stage, inputs: TrainInputs, history: Sequence[Row], facts: dict[str, Any]
) -> Manifest:
    shutil.rmtree(stage.local / CHECKPOINTS, ignore_errors=True)
    write_history(stage.local / HISTORY, history)
    keep, last = run.validation.keep, history[-1] if history else {}
    chosen = best_row(history, keep) if keep else last
    metrics = {name: value for name, value in chosen.items() if name == "loss" or name.startswith((SPLIT, SLICE))}
    counts = {"triplets": len(inputs.triplets), "steps": int(last.get("step", run.training.steps)), **inputs.sources}
    if keep:
        counts |= {"held_out": len(inputs.slice), "kept_step": int(chosen["step"])}
    return stage.publish(counts, metrics, {"generators_saw": texts_saw(run), **facts})


def texts_saw(run: TrainRun) -> dict[str, int]:
    """Data set -> labelled triplets that the generators of this run's texts were trained on.

    A run is only without a benchmark's human triplets if its generators had none either.
    """
    found: dict[str, int] = {}
    for uri in (*run.triplets, *run.reverse_texts):
        for name, count in read_manifest(uri, "triplets").extra.get("generator_saw", {}).items():
            found[name] = max(count, found.get(name, 0))
    return found


def write_history(path: Path, history: Sequence[Row]) -> None:
    """All rows, one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in history))
