"""Authors' checkpoints into artifacts of this package, and back. Nothing in a file is ever run.

Here are those of LAVIS, SPRC and MTST_PTHA; files around a CLIP are `convert_clip`'s.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cirray.core.artifacts import Manifest, Stage, is_complete, localize, open_stage, read_manifest
from cirray.core.config import validate
from cirray.core.contents import directory_digest, file_digest
from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.trees import leaves, merged
from cirray.core.unfinished import stage_function
from cirray.models.base import Retriever
from cirray.models.composed import QFormerRetriever
from cirray.models.config import Encoder, RetrieverConfig
from cirray.models.conversion import FORMATS, to_original
from cirray.models.conversion_files import (
    RECORD,
    Heads,
    Original,
    Record,
    convert,
    extend_tokenizer,
    read_original,
    read_weights,
    write_original,
    write_weights,
)
from cirray.models.conversion_stage2 import FORMAT as STAGE_2
from cirray.models.conversion_stage2 import WRAPPER, is_stage_2, joined, split
from cirray.models.forked import ForkedRetriever
from cirray.models.retriever_files import load_retriever
from cirray.models.sources.backward import retriever_tensors
from cirray.models.sources.blip2 import open_blip2, retriever_from
from cirray.models.sources.file_forms import refuse_other_files
from cirray.models.sources.files import CONFIG
from cirray.models.text import load_tokenizer
from cirray.models.towers.hf_blip2 import VisionTower, load_vision_tower
from cirray.models.towers.places import open_tower
from cirray.pipelines.training.start import check_sizes
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert_clip import (
    CLIP_FORMATS,
    clip_parts,
    counts,
    write_clip,
    write_folder_back,
    write_retriever_back,
)

WEIGHTS, MODEL, VISION, WORK, QUERY = "weights.pt", "model", "vision", "work", "query"


@stage_function
def run_convert(run: ConvertRun) -> Manifest:
    """Convert one checkpoint.

    Returns: Manifest of kind "weights" (both layouts) or "checkpoint"; counts `tensors` and `values`; `extra` has the
        format, and what was left out of the file (optimiser states).

    Raises ArtifactError for anything but a known checkpoint: wrong architecture, missing or extra tensors, code in a
    pickle, a truncated file; ConfigError: heads that do not divide the widths.
    """
    kind = "checkpoint" if run.to == "checkpoint" else "weights"
    stage = open_stage(run, kind, {"source": _digest(run.source)})
    if stage.finished:
        return stage.finished
    return _write_back(run, stage) if run.to == "original" else _write(run, stage)


def _write(run: ConvertRun, stage: Stage) -> Manifest:
    parts = clip_parts(run)
    if parts is not None:
        return write_clip(run, stage, parts)
    if run.clip:
        raise ConfigError(f"clip has no effect on a file of LAVIS' kind; it is for {', '.join(CLIP_FORMATS)}.")
    folder = stage.local / WORK if run.to == "checkpoint" else stage.local
    original, tensors, record = _read(run)
    second = _second_stage(run, original)
    write_weights(folder, tensors, record, Heads(run.qformer_heads, run.vision_heads), _tokenizer(run, record))
    extra: dict[str, Any] = {"format": STAGE_2 if second else record.format, "left_out": list(original.left_out)}
    if run.to == "checkpoint":
        extra["encoder_digest"] = _checkpoint(run, stage, record, second)
    return stage.publish(counts(tensors), extra=extra)


def _read(run: ConvertRun) -> tuple[Original, dict[str, Any], Record]:
    source = Path(run.source).expanduser()
    if not source.is_dir():
        original = read_original(source)
        if run.format == STAGE_2 and not is_stage_2(original.state):
            raise ArtifactError(f"{run.source!r} is no second stage of SPN's: it holds no Qformer_query.* tensors.")
        if not is_stage_2(original.state):
            return (original, *convert(original, run.format))
        if run.format not in ("auto", STAGE_2):
            raise ArtifactError(f"{run.source!r} is SPN's second stage, not {run.format}. Leave format out.")
        first, _ = split(original.state)
        return (original, *convert(replace(original, state=first), "sprc"))
    if run.to == "weights":
        raise ArtifactError(f"{run.source!r} is converted already; use to=checkpoint or to=original.")
    tensors, record = read_weights(source)
    return Original({}), tensors, record


def _second_stage(run: ConvertRun, original: Original) -> tuple[dict[str, Any], Record] | None:
    """The query side's tensors of a second stage of SPN's."""
    if not is_stage_2(original.state):
        return None
    if run.to != "checkpoint":
        raise ArtifactError(f"{run.source!r} is SPN's second stage, two text sides in one file; use to=checkpoint.")
    return convert(replace(original, state=split(original.state)[1]), "sprc")


def _tokenizer(run: ConvertRun, record: Record) -> Any:
    """The named tokenizer, or that of an already converted folder, or none."""
    place: str | Path = run.tokenizer
    if not place:
        folder = Path(run.source).expanduser()
        place = folder / "qformer_tokenizer" if FORMATS[record.format].instruct else folder
        if not (place / "tokenizer_config.json").is_file():
            return None
    return extend_tokenizer(load_tokenizer(place), record.sizes.vocabulary)


def _checkpoint(run: ConvertRun, stage: Stage, record: Record, second: tuple[dict[str, Any], Record] | None) -> str:
    """Make `model/` of the weights folder, with a second stage's query side; returns the tower's digest."""
    work = stage.local / WORK
    if not any(work.rglob("tokenizer_config.json")):
        raise ArtifactError(
            f"{run.source!r} has no tokenizer. Name BERT's with tokenizer=FOLDER (holding tokenizer.json or "
            "vocab.txt) or, with network, tokenizer=bert-base-uncased."
        )
    if not run.vision and not record.sizes.tower_layers:
        raise ArtifactError(
            f"{run.source!r} holds no vision tower (LAVIS leaves frozen weights out); name one with vision=, e.g. "
            "vision=Salesforce/blip2-itm-vit-g."
        )
    source = open_blip2(str(work))
    encoder = run.encoder or Encoder()
    if not isinstance(encoder.settings, RetrieverConfig):
        raise ConfigError(f"{run.source!r} holds an encoder of kind 'qformer', but encoder.kind is {encoder.kind!r}.")
    given = encoder.settings.given()
    check_sizes(encoder.settings.qformer, source, leaves(given))
    config = validate(RetrieverConfig, merged(_released(record.format), given))
    retriever: Retriever = retriever_from(source, config)
    if second is not None:
        write_weights(work / QUERY, *second, Heads(run.qformer_heads, run.vision_heads), _tokenizer(run, record))
        retriever = ForkedRetriever(retriever_from(open_blip2(str(work / QUERY)), config), retriever, "second_pass")
    tower = open_tower(run.vision or str(work))
    if tower.width != retriever.patch_width:
        raise ArtifactError(
            f"The vision tower of {run.vision!r} makes tokens of width {tower.width}, the checkpoint reads "
            f"{retriever.patch_width}. Name the tower it was trained on."
        )
    mode = run.image_mode or "target_pad"
    tower = tower.with_transform(tower.transform.with_mode(mode))
    retriever.save(stage.local / MODEL)
    tower.save(stage.local / MODEL / VISION)
    shutil.rmtree(work)
    return tower.digest


def _released(form: str) -> dict[str, Any]:
    """As the released code reads texts and infers: [CLS] after pass B; only PTHA trains on the mean of 33, unmasked."""
    if form == "ptha":
        own: dict[str, Any] = {"inference_readout": "cls", "text_mask": "ones"}
    else:
        own = {"readout": "cls", "text_mask": "true"}
    return {**own, "temperature_clamp": None, "text_processor": "blip_caption"}


def _write_back(run: ConvertRun, stage: Stage) -> Manifest:
    if is_complete(run.source) and read_manifest(run.source).kind == "checkpoint":
        folder = localize(run.source, "checkpoint") / MODEL
        retriever = load_retriever(folder)
        tower = load_vision_tower(folder / VISION)
        if isinstance(retriever, ForkedRetriever) and isinstance(retriever.query, QFormerRetriever):
            return _write_second_stage(retriever, tower, stage)
        if not isinstance(retriever, QFormerRetriever):
            states, left = write_retriever_back(retriever, tower, stage.local)
            return stage.publish(counts(*states), extra={"left_out": left})
        tensors, record = retriever_tensors(retriever, tower)
    elif clip_parts(run) is not None:
        state = write_folder_back(Path(run.source).expanduser(), stage.local / WEIGHTS)
        return stage.publish(counts(state))
    else:
        tensors, record = read_weights(Path(run.source).expanduser())
    write_original(stage.local / WEIGHTS, tensors, record)
    return stage.publish(counts(tensors), extra={"format": record.format})


def _write_second_stage(retriever: ForkedRetriever, tower: VisionTower, stage: Stage) -> Manifest:
    """Write a forked checkpoint in SPN4CIR's layout.

    Raises ArtifactError when the whole query side was trained, which the layout cannot hold.
    """
    query, gallery = retriever.query, retriever.gallery
    assert isinstance(query, QFormerRetriever) and isinstance(gallery, QFormerRetriever)
    if retriever.trains != "second_pass":
        raise ArtifactError(
            f"This checkpoint trained its {retriever.trains!r}; SPN4CIR's layout holds a second pass alone "
            "(training.terms.bank_infonce.trains=second_pass)."
        )
    first, own = (
        to_original(tensors, record.format, record.sizes, record.position_ids)
        for tensors, record in (retriever_tensors(half, tower) for half in (gallery, query))
    )
    state = joined(first, own)
    torch.save({"epoch": 0, WRAPPER: state}, str(stage.local / WEIGHTS))
    return stage.publish(counts(state), extra={"format": STAGE_2})


def _digest(source: str) -> str:
    path = Path(source).expanduser()
    if is_complete(source):
        return read_manifest(source).digest
    if path.is_dir() and (path / RECORD).is_file():
        return open_blip2(str(path)).digest if (path / CONFIG).is_file() else directory_digest(str(path))
    if path.is_dir():
        refuse_other_files(path)
    if not path.is_file():
        raise ArtifactError(
            f"There is no checkpoint at {source!r}. Give a file of LAVIS, SPRC, MTST_PTHA, CLIP4Cir, SEARLE, LinCIR or "
            "Pic2Word (.pth, .pt), or a folder that `cirray convert` made."
        )
    return file_digest(str(path))
