"""A trained model as one folder in Hugging Face style: weights, configuration, preprocessor, tokenizer, model card."""

import json
import shutil
from typing import Any

from cirray.core.artifacts import Manifest, Stage, localize, open_stage, read_manifest
from cirray.core.errors import ArtifactError
from cirray.core.unfinished import stage_function
from cirray.evaluation.pages import render
from cirray.models.opening import model_folder
from cirray.models.towers.preprocessors import PREPROCESSOR
from cirray.pipelines.weights.config import ExportRun
from cirray.pipelines.weights.hub import card_metadata, check_id, push_folder

KIND, CARD, RECIPE = "export", "README.md", "recipe.json"
_KINDS = ("checkpoint", "generator")


@stage_function
def run_export(run: ExportRun) -> Manifest:
    """Export a checkpoint or a generator.

    Returns: Manifest of kind "export"; `extra` holds the digests of encoder and tower.

    Raises ArtifactError: the model is missing or of another kind, another artifact is at `out`, or the hub takes
    nothing; ConfigError: `push` is no hub id.
    """
    if not run.push:
        return _exported(run)
    check_id(run.push)
    made = _exported(run)
    push_folder(localize(run.out, KIND), run.push, run.private)
    return made


def _exported(run: ExportRun) -> Manifest:
    source = read_manifest(run.model)
    if source.kind not in _KINDS:
        raise ArtifactError(f"{run.model!r} is an artifact of kind {source.kind!r}; one of {_KINDS} can be exported.")
    reports = {f"reports {at}": read_manifest(uri, "report") for at, uri in enumerate(run.reports)}
    inputs = {"model": source.digest, **{name: report.digest for name, report in reports.items()}}
    stage = open_stage(run, KIND, inputs)
    if stage.finished:
        return stage.finished
    kind, digests = _copy(run, stage, source)
    card = render(
        "card.jinja", name=run.name, kind=kind, notes=run.notes, source=source, reports=list(reports.values()),
        digests=digests, place=run.push or "this-folder", metadata=card_metadata(run, kind, source, reports.values()),
    )  # fmt: skip
    (stage.local / CARD).write_text(card, encoding="utf-8")
    recipe = {"config": source.identity, "inputs": source.inputs, "counts": source.counts, "metrics": source.metrics}
    (stage.local / RECIPE).write_text(json.dumps(recipe, indent=2, sort_keys=True) + "\n")
    return stage.publish({"files": sum(path.is_file() for path in stage.local.rglob("*"))}, extra=digests)


def _copy(run: ExportRun, stage: Stage, source: Manifest) -> tuple[str, dict[str, Any]]:
    """Copy the model's files; returns its kind and digests."""
    folder, kind = model_folder(localize(run.model))
    keep = shutil.ignore_patterns("manifest.json", "stage.json", "samples.jsonl")
    shutil.copytree(folder, stage.local, dirs_exist_ok=True, ignore=keep)
    digests: dict[str, Any] = {"artifact": source.digest}
    if kind == "retriever":
        from cirray.image_text import load_encoder

        # also at the top, where Hugging Face's tools look for it
        if (prepared := stage.local / "vision" / PREPROCESSOR).is_file():
            shutil.copy(prepared, stage.local / PREPROCESSOR)
        loaded = load_encoder(stage.local)
        digests |= {"encoder_digest": loaded.digest, "vision_digest": loaded.vision.digest}
    return kind, digests
