"""Convert files of CLIP4Cir, SPN4CIR, SEARLE, LinCIR and Pic2Word to artifacts, and back.

A Combiner or a map needs its CLIP (`clip`): CLIP4Cir's Combiner its tuned one, the others the public one. As in the
authors' evaluation, CLIP's embeddings are not normalised.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cirray.core.artifacts import Manifest, Stage
from cirray.core.errors import ArtifactError, ConfigError
from cirray.data.config import ImageMode
from cirray.models.base import Retriever, torch_seed
from cirray.models.config import DualEncoderConfig
from cirray.models.conversion_clip import (
    CLIP,
    COMBINER,
    IMG2TEXT,
    MARKS,
    PHI,
    ClipParts,
    State,
    Wrapper,
    clip_settings,
    find_parts,
    to_ours,
    to_theirs,
)
from cirray.models.conversion_files import RECORD
from cirray.models.dual import DualEncoderRetriever
from cirray.models.fusion.config import CombinerConfig, DualFusion
from cirray.models.sources.clip_files import read_tree
from cirray.models.sources.files import check_floats, read_json, read_tensors
from cirray.models.towers.backbones import load_text_encoder, no_texts
from cirray.models.towers.clip_tower import with_tokens
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.models.towers.open_clip import OpenClipTower, write_folder
from cirray.models.towers.places import open_tower
from cirray.models.words.config import InjectionConfig, PhiConfig, WordMapConfig
from cirray.models.words.word_map import CLIP as WHOLE
from cirray.models.words.word_map import WordMapRetriever
from cirray.pipelines.weights.config import ConvertRun

MODEL, VISION, WORK = "model", "vision", "work"
_UNUSED = ("tokenizer", "vision", "qformer_heads", "vision_heads", "encoder")
_FOLDER_WEIGHTS = "open_clip_model.safetensors"


@dataclass(frozen=True)
class ClipFormat:
    """A format: its converted part, its authors' image preparation, and (maps) phi's shape."""

    part: str
    image_mode: ImageMode
    phi: PhiConfig | None = None
    query_prompt: str = ""


_SEARLE = PhiConfig(dropout=0.5, activation="gelu", reads="raw")
_PIC2WORD = PhiConfig(dropout=0.1, activation="relu", reads="raw")
CLIP_FORMATS = {
    "clip4cir": ClipFormat(COMBINER, "target_pad"),
    "searle": ClipFormat(PHI, "target_pad", _SEARLE, "a photo of $ that {text}"),
    "lincir": ClipFormat(PHI, "center_crop", _SEARLE, "a photo of $ that {text}"),
    "pic2word": ClipFormat(IMG2TEXT, "center_crop", _PIC2WORD, "a photo of $ , {text}"),
}
"""CLIP4Cir and SEARLE pad to 1.25 (`data_utils.py` of both), LinCIR (`models.py`) and Pic2Word (`src/main.py`) crop."""


def clip_parts(run: ConvertRun) -> ClipParts | None:
    """The parts of a source of this family, or None for one of LAVIS'.

    Raises ArtifactError when the file cannot be read, or is none of the named format.
    """
    path = Path(run.source).expanduser()
    if path.is_dir():
        record = read_json(path / RECORD) if (path / RECORD).is_file() else {}
        if record.get("format") not in CLIP_FORMATS:
            return None
        state = read_tensors(path / _FOLDER_WEIGHTS)
        return ClipParts({CLIP: state}, {CLIP: Wrapper(**record["wrapper"])}, record["beside"], openai=True)
    if not path.is_file() or run.format not in ("auto", *CLIP_FORMATS):
        return None
    parts = find_parts(read_tree(path))
    if run.format != "auto" and not parts.states:
        marks = ", ".join(f"{name}: {mark}" for name, mark in MARKS.items())
        raise ArtifactError(f"{run.source!r} is no file of {run.format}: none of its tensors is known ({marks}).")
    return parts if parts.states else None


def write_clip(run: ConvertRun, stage: Stage, parts: ClipParts) -> Manifest:
    """Write the folder or the checkpoint that `run` asks for.

    Raises ArtifactError: a part that is missing, not as published, or of another width than the CLIP; ConfigError: a
    field that has no use here, or a CLIP that cannot be reached.
    """
    for name in _UNUSED:
        if name in run.given():
            raise ConfigError(f"{name} has no effect on files of {', '.join(CLIP_FORMATS)}; leave it out.")
    form = _format(run, parts)
    for state in parts.states.values():
        check_floats(run.source, {name: value for name, value in state.items() if value.is_floating_point()})
    extra: dict[str, Any] = {"format": form, "left_out": list(parts.left_out)}
    used = [name for name in (CLIP, CLIP_FORMATS[form].part) if name in parts.states]
    if run.to == "checkpoint":
        extra["encoder_digest"] = _checkpoint(run, stage, parts, form)
    elif used != [CLIP]:
        raise ArtifactError(
            f"{run.source!r} holds a {used[-1]}, which the weights layout cannot hold; set to=checkpoint."
        )
    else:
        state, wrapper = parts.states[CLIP], parts.wrappers[CLIP]
        write_folder(stage.local, clip_settings(state), state)
        record = {"format": form, "wrapper": {"key": wrapper.key, "prefix": wrapper.prefix}, "beside": parts.beside}
        (stage.local / RECORD).write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
    return stage.publish(counts(*(parts.states[name] for name in used)), extra=extra)


def counts(*states: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Number of tensors and values of state dicts."""
    return {
        "tensors": sum(map(len, states)), "values": sum(value.numel() for state in states for value in state.values())
    }  # fmt: skip


def _format(run: ConvertRun, parts: ClipParts) -> str:
    """The named format, or the one found by a file's parts."""
    if run.format != "auto":
        wanted = {CLIP, COMBINER} if run.format == "clip4cir" else {CLIP_FORMATS[run.format].part}
        if wanted & set(parts.states):
            return run.format
        raise ArtifactError(
            f"{run.source!r} is no file of {run.format}: it holds {_listed(parts)}, where {_or(wanted)} is needed."
        )
    if IMG2TEXT in parts.states:
        return "pic2word"
    if PHI in parts.states:
        raise ArtifactError(
            f"{run.source!r} holds a Phi, and files of SEARLE and LinCIR look alike; name format=searle or "
            "format=lincir, which prepare images differently."
        )
    if COMBINER not in parts.states and not parts.openai:
        raise ArtifactError(
            f"{run.source!r} is a bare CLIP, which does not tell its activation; name format=clip4cir if it is "
            "OpenAI's (QuickGELU), else use open_clip:NAME=FILE where a CLIP is asked for."
        )
    return "clip4cir"


def _checkpoint(run: ConvertRun, stage: Stage, parts: ClipParts, form: str) -> str:
    """Write `model/`; returns the tower's digest."""
    source = _clip_source(run, stage, parts)
    whole = Path(source).expanduser() / WHOLE
    backbone, text = load_text_encoder(str(whole) if whole.is_dir() else source)
    if not backbone:
        raise no_texts("clip", run.clip)
    tower = with_tokens(open_tower(source), "embedding")
    mode = run.image_mode or CLIP_FORMATS[form].image_mode
    tower = tower.with_transform(tower.transform.with_mode(mode))
    with torch_seed(0):
        retriever = _retriever(run, parts, form, (text, backbone, tower.width))
    retriever.eval().save(stage.local / MODEL)
    tower.save(stage.local / MODEL / VISION)
    shutil.rmtree(stage.local / WORK, ignore_errors=True)
    return tower.digest


def _clip_source(run: ConvertRun, stage: Stage, parts: ClipParts) -> str:
    """The named CLIP, or the file's own, written as a folder of open_clip."""
    if run.clip:
        return run.clip
    if CLIP not in parts.states:
        raise ArtifactError(
            f"{run.source!r} holds {_listed(parts)} and no CLIP. Name the CLIP that it was trained over with clip= "
            "(CLIP4Cir's tuned .pt, a folder, a hub id, or open_clip:NAME=FILE)."
        )
    folder = stage.local / WORK
    write_folder(folder, clip_settings(parts.states[CLIP]), parts.states[CLIP])
    return str(folder)


def _retriever(run: ConvertRun, parts: ClipParts, form: str, clip: tuple[Any, str, int]) -> Retriever:
    text, part = clip[0], CLIP_FORMATS[form].part
    if part not in parts.states:
        return DualEncoderRetriever(DualEncoderConfig(), *clip)
    state, phi = to_ours(part, parts.states[part]), CLIP_FORMATS[form].phi
    if phi is None:
        width, projected, hidden = (len(state[f"{name}.weight"]) for name in ("mix", "text_side", "mix_hidden"))
        _same(run, part, width, int(text.embed_dim), projected % width or hidden % width)
        factors = {"projection_factor": projected // width, "hidden_factor": hidden // width}
        fusion = DualFusion(kind="combiner", settings=CombinerConfig(**factors))
        config = DualEncoderConfig(fusion=fusion, train_text=False)
        dual = DualEncoderRetriever(config, *clip)
        dual.head.load_state_dict(state)
        return dual
    hidden, width = state["layers.0.weight"].shape
    _same(run, part, width, int(text.embed_dim))
    settings = WordMapConfig(
        phi=phi.model_copy(update={"hidden": hidden}), injection=InjectionConfig(layers=0), tuning="none",
        query_prompt=CLIP_FORMATS[form].query_prompt,
    )  # fmt: skip
    mapped = WordMapRetriever(settings, *clip)
    _same(run, part, len(state["layers.6.weight"]), int(mapped.word_table.shape[1]))
    mapped.phi.load_state_dict(state)
    return mapped


def _same(run: ConvertRun, part: str, width: int, other: int, odd: int = 0) -> None:
    if odd:
        raise ArtifactError(
            f"The {part} of {run.source!r} has inner widths that are no multiples of {width}; it cannot be read."
        )
    if width != other:
        raise ArtifactError(
            f"The {part} of {run.source!r} is for vectors of width {width}, the CLIP of "
            f"{run.clip or run.source!r} has {other}. Name the CLIP that it was trained over."
        )


def write_folder_back(folder: Path, path: Path) -> State:
    """Write the original file of a `write_clip` folder: names, values, types, and what was beside them.

    Returns: Its state dict.
    """
    record, state = read_json(folder / RECORD), load_file(str(folder / _FOLDER_WEIGHTS))
    wrapper = Wrapper(**record["wrapper"])
    named = {f"{wrapper.prefix}{name}": value for name, value in state.items()}
    torch.save({**record["beside"], wrapper.key: named} if wrapper.key else named, str(path))
    return state


def write_retriever_back(retriever: Retriever, tower: VisionTower, folder: Path) -> tuple[list[State], list[str]]:
    """Write a dual encoder or a pseudo-word retriever as its authors' files: `clip.pt`, `combiner.pt`, `phi.pt`.

    Returns: The state dicts, and what the authors' layout cannot hold.

    Raises ArtifactError when no part has such a layout.
    """
    files: dict[str, tuple[str, State]] = {}
    left: list[str] = []
    if isinstance(retriever, WordMapRetriever):
        files["phi.pt"] = _phi(retriever)
        left.append("CLIP")
    elif isinstance(retriever, DualEncoderRetriever) and retriever.config.fusion.kind in ("sum", "combiner"):
        clip = _clip(retriever, tower)
        if clip:
            files["clip.pt"] = (CLIP, clip)
        else:
            left.append("CLIP")
        if retriever.config.fusion.kind == "combiner":
            files["combiner.pt"] = (COMBINER, to_theirs(COMBINER, retriever.head.state_dict()))
    if not files:
        raise ArtifactError(
            f"This {retriever.kind} has no authors' layout: those are for Q-Former retrievers, for fusion sum and "
            "combiner over OpenAI's CLIP in open_clip's form, and for plain maps. Use `cirray export`."
        )
    for name, (key, state) in files.items():
        torch.save({"epoch": 0, key: state}, str(folder / name))
    return [state for _, state in files.values()], left


def _clip(retriever: DualEncoderRetriever, tower: VisionTower) -> State:
    """OpenAI's state dict of a dual encoder over open_clip with QuickGELU; empty for another."""
    settings = retriever.text_encoder.description()
    if not isinstance(tower, OpenClipTower) or not settings.get("quick_gelu") or retriever.config.image_projection:
        return {}
    state = {**tower.model.state_dict(), **retriever.text_encoder.model.state_dict()}
    return {name: value.detach().cpu().clone() for name, value in state.items()} if MARKS[CLIP] in state else {}


def _phi(retriever: WordMapRetriever) -> tuple[str, State]:
    config = retriever.config
    changed = any(bool(weight.any()) for name, weight in retriever.adapters.named_parameters() if ".up." in name)
    if config.injection.layers or config.tokens > 1 or config.tuning == "full" or changed or config.phi.reads != "raw":
        raise ArtifactError(
            "This pseudo-word retriever is more than a map: injection, several tokens, a tuned text encoder or "
            "phi.reads=unit do not fit into the authors' layouts. Use `cirray export`."
        )
    part = PHI if config.phi.activation == "gelu" else IMG2TEXT
    return part, to_theirs(part, retriever.phi.state_dict())


def _listed(parts: ClipParts) -> str:
    return " and ".join(f"a {name}" for name in sorted(parts.states))


def _or(names: set[str]) -> str:
    return " or ".join(f"a {name}" for name in sorted(names))
