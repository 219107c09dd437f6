"""The model of an index: published weights opened as a checkpoint, once, which every other stage then reads."""

import shutil
from pathlib import Path

from cirray.core.artifacts import (
    Manifest,
    Stage,
    is_complete,
    open_stage,
    place_digest,
    read_manifest,
)
from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.log import get_logger
from cirray.core.places import place_below
from cirray.core.unfinished import stage_function
from cirray.pipelines.search.config import IndexRun, ModelRun, short_name
from cirray.types import Composition, stable_id

MODEL, VISION = "model", "vision"
_LOGGER = get_logger("pipelines.models")


def with_checkpoint(run: IndexRun) -> IndexRun:
    """The run with a checkpoint in place of `model`, which is opened below its root if need be.

    Raises ArtifactError when there is no such model, and ConfigError for a composition that it does not know, or one
    without a model.
    """
    if not run.model:
        if run.composition or run.weight is not None:
            raise ConfigError("composition and weight say how `model` composes; name one, or leave them out.")
        return run
    checkpoint = run.model
    is_checkpoint = is_complete(run.model) and read_manifest(run.model).kind == "checkpoint"
    if not is_checkpoint or run.composition or run.weight is not None:
        digest = place_digest(run.model)
        name = f"{short_name(run.model)}-{stable_id(digest, run.composition, run.weight)[:6]}"
        checkpoint = place_below(run.root, f"@models/{name}")
        fields = {name: getattr(run, name) for name in ("root", "composition", "weight")}
        made = run_model(ModelRun(source=run.model, out=checkpoint, **fields))
        _LOGGER.info("the model is %s (%s)", checkpoint, made.extra["composition"])
    return run.model_copy(update={"model": "", "composition": "", "weight": None, "checkpoint": checkpoint})


@stage_function
def run_model(run: ModelRun) -> Manifest:
    """Open published weights, or an export, as a checkpoint.

    Returns: Manifest of kind "checkpoint"; `extra` has the tower's digest, the composition and the text's weight.

    Raises ArtifactError when the source cannot be read, or another artifact is at `out`, and ConfigError for a
    composition that the model does not know.
    """
    stage = open_stage(run, "checkpoint")
    if stage.finished:
        return stage.finished
    folder = _own_folder(run.source)
    return _opened(run, stage) if folder is None else _recomposed(run, stage, folder)


def _opened(run: ModelRun, stage: Stage) -> Manifest:
    from cirray.models.opening import open_published

    retriever, tower = open_published(run.source, run.composition, run.weight)
    retriever.save(stage.local / MODEL)
    tower.save(stage.local / MODEL / VISION)
    return _published(stage, retriever.composition, tower.digest)


def _recomposed(run: ModelRun, stage: Stage, folder: Path) -> Manifest:
    from cirray.models.opening import recomposed
    from cirray.models.retriever_files import load_retriever
    from cirray.models.towers.hf_blip2 import load_vision_tower

    retriever = recomposed(load_retriever(folder), run.composition, run.weight)
    retriever.save(stage.local / MODEL)
    shutil.copytree(folder / VISION, stage.local / MODEL / VISION)
    return _published(stage, retriever.composition, load_vision_tower(folder / VISION).digest)


def _published(stage: Stage, composition: Composition, tower_digest: str) -> Manifest:
    extra = {"encoder_digest": tower_digest, "composition": composition.name, "weight": composition.weight}
    return stage.publish({}, extra=extra)


def _own_folder(source: str) -> Path | None:
    """Model folder of a checkpoint or export of this package; None for anything else."""
    from cirray.models.opening import own_source

    found = own_source(source)
    if found is not None and found[1] != "retriever":
        raise ArtifactError(
            f"{source!r} holds a {found[1]}, which writes texts; name a checkpoint or an export of one."
        )
    return found[0] if found else None
