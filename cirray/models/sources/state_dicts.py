"""State dicts as people save them, under a key and with wrappers' prefixes; checks of their values."""

from collections.abc import Collection, Mapping
from typing import Any

import torch

from cirray.core.errors import ArtifactError

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts that torch.compile, FSDP and activation checkpointing insert into names."""
PREFIXES = ("module", "model", "net", "network", "retriever", "blip", "blip_model", "clip", "clip_model", "backbone")
"""Prefixes of data-parallel training (`module`), Lightning (`model`) and people's own classes."""
KEYS = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network", "weights", "params")


def unwrapped(tree: Any, place: str) -> dict[str, torch.Tensor]:
    """The tensors of a saved object: itself, or the value of one of the usual keys, at any depth.

    Raises ArtifactError naming what the object holds instead.
    """
    found = tree
    while isinstance(found, Mapping) and not any(isinstance(value, torch.Tensor) for value in found.values()):
        inner = next((found[key] for key in KEYS if isinstance(found.get(key), Mapping)), None)
        if inner is None:
            break
        found = inner
    if not isinstance(found, Mapping) or not any(isinstance(value, torch.Tensor) for value in found.values()):
        holds = sorted(map(str, found))[:6] if isinstance(found, Mapping) else type(found).__name__
        raise ArtifactError(
            f"{place!r} holds no state dict, but {holds}. Give tensors by name, bare or under one of {', '.join(KEYS)}."
        )
    return {str(name): value for name, value in found.items()}


def bare_name(name: str) -> str:
    """A tensor's name without the parts that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in WRAPPED)


def prefix_of(names: Collection[str], wanted: Collection[str], place: str, known: Collection[str] = PREFIXES) -> str:
    """The prefix of the wanted names, e.g. `model.module.`, of `known` parts; empty if there is none or no name is
    found.

    Names are without the parts of `bare_name`.

    Raises ArtifactError for a prefix that is not known, or several sets of the same weights.
    """
    anchor = next((name for name in sorted(wanted) if any(other.endswith(f".{name}") for other in names)), None)
    if anchor is None or any(name in names for name in wanted):
        return ""
    found = sorted({name[: -len(anchor)] for name in names if name.endswith(f".{anchor}")})
    if len(found) > 1:
        raise ArtifactError(
            f"{place!r} holds {len(found)} sets of weights, under {', '.join(map(repr, found))}. Save one of them."
        )
    odd = [part for part in found[0].rstrip(".").split(".") if part not in known]
    if odd:
        raise ArtifactError(
            f"The tensors of {place!r} begin with {found[0]!r} ({found[0]}{anchor}), which is no known prefix "
            f"({', '.join(PREFIXES)}). Save them without it."
        )
    return found[0]


def stripped(state: Mapping[str, Any], wanted: Collection[str], place: str) -> dict[str, Any]:
    """A state dict under the model's own names, without wrappers' prefixes.

    Raises ArtifactError as `prefix_of`, or when two tensors would get one name.
    """
    bare = {bare_name(name): value for name, value in state.items()}
    prefix = prefix_of(bare, wanted, place)
    named = {name.removeprefix(prefix): value for name, value in bare.items()}
    if len(named) != len(state):
        raise ArtifactError(
            f"{place!r} holds tensors that are one without the prefixes of wrappers. Save one set alone."
        )
    return named


def check_floats(name: str, tensors: Mapping[str, Any]) -> None:
    """Refuse weights that are no numbers, or of a packed type. Raises ArtifactError: naming the first such tensor."""
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ArtifactError(f"{name!r} holds a {type(value).__name__} under {key!r} where a tensor is needed.")
        if value.dtype not in FLOATS:
            kind = str(value.dtype).removeprefix("torch.")
            raise ArtifactError(
                f"The tensor {key!r} of {name!r} has type {kind}; float64, float32, float16 and bfloat16 are accepted. "
                "Give the checkpoint before it was quantised."
            )
    check_finite(name, tensors)


def check_finite(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse NaN and infinite weights, which give a model that answers nonsense; masks may hold -inf.

    Raises ArtifactError naming the first such tensor and how much of it is affected.
    """
    for key, value in tensors.items():
        if value.dtype not in FLOATS or not value.numel() or value.is_meta or "mask" in key:
            continue
        low, high = torch.aminmax(value.detach())
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            bad = int((~torch.isfinite(value)).sum())
            raise ArtifactError(
                f"{bad:,} of {value.numel():,} values of the tensor {key!r} of {name!r} are NaN or infinite. Give a "
                "checkpoint of a training that did not diverge; half precision may have overflowed when it was saved."
            )
