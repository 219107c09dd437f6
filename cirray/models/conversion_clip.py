"""Files around a CLIP in OpenAI's layout: their parts, and their tensors' names here. Pure.

CLIP4Cir     {epoch, CLIP} after its first stage, {epoch, Combiner} after its second (`src/utils.py`, `src/combiner.py`)
SPN4CIR      {epoch, state_dict}, the CLIP's names under `clip.` (`clip4cir/models.py`, `clip4cir/utils.py`)
SEARLE       {epoch, Phi, ...} (`src/phi.py`, `src/train_phi.py`); LinCIR's files look the same (`models.py`)
Pic2Word     {epoch, name, state_dict, state_dict_img2text, optimizer}, names under `module.` (`src/main.py`)

Parts are recognised by their tensors under any key. A CLIP has open_clip's names already; its sizes follow from shapes
(`clip/model.py`: 64 numbers a head) and its activation is QuickGELU.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from cirray.core.errors import ArtifactError
from cirray.models.sources.state_dicts import bare_name

State = dict[str, torch.Tensor]
CLIP, COMBINER, PHI, IMG2TEXT = "CLIP", "Combiner", "Phi", "state_dict_img2text"
MARKS = {
    CLIP: "token_embedding.weight", COMBINER: "combiner_layer.weight", PHI: "layers.6.weight",
    IMG2TEXT: "fc_out.weight",
}  # fmt: skip
"""The tensor by which a part is recognised."""
NAMES: dict[str, dict[str, str]] = {
    COMBINER: {
        "text_projection_layer": "text_side", "image_projection_layer": "image_side", "combiner_layer": "mix_hidden",
        "output_layer": "mix", "dynamic_scalar.0": "gate_hidden", "dynamic_scalar.3": "gate",
    },
    PHI: {"layers.0": "layers.0", "layers.3": "layers.3", "layers.6": "layers.6"},
    IMG2TEXT: {"layers.0.0": "layers.0", "layers.1.0": "layers.3", "fc_out": "layers.6"},
}  # fmt: skip
"""Layers of a part: the authors' names, and those of `Combiner` and `Phi` here; each has a weight and a bias."""
_PREFIXES = ("module.", "clip.", "model.", "_orig_mod.")
_SAID = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors."""
_HEAD = 64


@dataclass(frozen=True)
class Wrapper:
    """Place of a part in its file: its key (empty: none) and its tensors' prefix."""

    key: str = ""
    prefix: str = ""


@dataclass(frozen=True)
class ClipParts:
    """A file's parts by name, as `MARKS` calls them, and what else the file holds."""

    states: dict[str, State]
    wrappers: dict[str, Wrapper]
    beside: dict[str, Any] = field(default_factory=dict)
    """Plain values: the epoch."""
    left_out: tuple[str, ...] = ()
    """Neither parts nor plain values: optimiser states."""
    openai: bool = False
    """Whether its CLIP is surely OpenAI's (QuickGELU); a bare state dict does not tell."""


def find_parts(tree: Any) -> ClipParts:
    """The parts of a file; none for another kind of file."""
    states: dict[str, State] = {}
    wrappers: dict[str, Wrapper] = {}
    rest: dict[str, Any] = {}
    for key, value in _members(tree):
        prefix, state = _stripped(value)
        part = next((name for name, mark in MARKS.items() if mark in state), "")
        if part and part not in states:
            states[part], wrappers[part] = state, Wrapper(key, prefix)
        elif key:
            rest[key] = value
    plain = {key: value for key, value in rest.items() if isinstance(value, int | float | str | bool | type(None))}
    own = wrappers.get(CLIP, Wrapper())
    said = isinstance(tree, Mapping) and any(name in tree for name in _SAID)
    openai = said or own.key == CLIP or "clip." in own.prefix or IMG2TEXT in states
    return ClipParts(states, wrappers, plain, tuple(sorted(set(rest) - set(plain))), openai)


def clip_settings(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """open_clip's configuration (`model_cfg`) of a CLIP in OpenAI's layout, read off its shapes.

    Raises ArtifactError when a tensor for a size is missing.
    """
    try:
        width, embed = state["text_projection"].shape
        text = {
            "context_length": state["positional_embedding"].shape[0], "vocab_size": state[MARKS[CLIP]].shape[0],
            "width": width, "heads": max(width // _HEAD, 1),
            "layers": _count(state, r"transformer\.resblocks\.(\d+)\."),
        }  # fmt: skip
        vision = _transformer(state) if "visual.proj" in state else _resnet(state)
    except (KeyError, ValueError, IndexError) as error:
        raise ArtifactError(
            f"The CLIP is not in OpenAI's layout: {' '.join(str(error).split())} tells a size and is not as it should "
            "be. Give the whole state dict."
        ) from None
    return {"embed_dim": embed, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}


def to_ours(part: str, state: Mapping[str, torch.Tensor]) -> State:
    """A Combiner's or a map's tensors under the names of our module.

    Raises ArtifactError: listing tensors that are missing or left over.
    """
    table = {
        f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in NAMES[part].items() for kind in ("weight", "bias")
    }
    missing, left = sorted(set(table) - set(state)), sorted(set(state) - set(table))
    if missing or left:
        raise ArtifactError(
            f"The {part} is not as published: missing {', '.join(missing[:4]) or 'none'}; left over "
            f"{', '.join(left[:4]) or 'none'}. Give the unchanged file."
        )
    return {ours: state[theirs] for theirs, ours in table.items()}


def to_theirs(part: str, state: Mapping[str, torch.Tensor]) -> State:
    """The inverse: `to_theirs(part, to_ours(part, state))` is `state`."""
    return {
        f"{theirs}.{kind}": state[f"{ours}.{kind}"].detach().cpu().clone()
        for theirs, ours in NAMES[part].items()
        for kind in ("weight", "bias")
    }


def _members(tree: Any) -> Iterator[tuple[str, Any]]:
    """The whole tree if it is a state dict, else the state dicts in it."""
    if isinstance(tree, Mapping):
        if any(isinstance(value, torch.Tensor) for value in tree.values()):
            yield "", tree
        else:
            yield from ((str(key), value) for key, value in tree.items())


def _stripped(value: Any) -> tuple[str, State]:
    """A state dict's wrapper prefix, and the state dict without it; empty for something else."""
    if not isinstance(value, Mapping):
        return "", {}
    state = {bare_name(str(name)): tensor for name, tensor in value.items() if str(name) not in _SAID}
    if not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        return "", {}
    found = ""
    while prefix := next((item for item in _PREFIXES if state and all(name.startswith(item) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        found += prefix
    return found, state


def _transformer(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    width, _, patch, _ = state["visual.conv1.weight"].shape
    side = math.isqrt(state["visual.positional_embedding"].shape[0] - 1)
    return {
        "image_size": side * patch, "layers": _count(state, r"visual\.transformer\.resblocks\.(\d+)\."),
        "width": width, "patch_size": patch, "head_width": min(_HEAD, width),
    }  # fmt: skip


def _resnet(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A ResNet halves the image five times."""
    layers = [_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)]
    side = math.isqrt(state["visual.attnpool.positional_embedding"].shape[0] - 1)
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    return {"image_size": 32 * side, "layers": layers, "width": width, "patch_size": None}


def _count(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    return len({found.group(1) for name in state if (found := re.match(pattern, name))})
