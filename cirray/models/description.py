"""A retriever as files, `config.json`, `model.safetensors` and the tokenizer's, and the digest over what they hold."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from cirray.core.contents import canonical, spoken
from cirray.core.trees import differing

if TYPE_CHECKING:
    from cirray.models.base import Retriever

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_retriever(retriever: "Retriever", folder: Path) -> None:
    """Write a retriever; the folder is made when absent."""
    folder.mkdir(parents=True, exist_ok=True)
    retriever.save_words(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in retriever.state_dict().items()}
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_description(retriever), indent=2, sort_keys=True) + "\n")


def retriever_digest(retriever: "Retriever") -> str:
    """32 hex digits over configuration, vocabulary and weights; independent of device and file.

    Fields at their default are left out, so that a field added later changes no digest. Defaults are those of the
    field's place in the tree, which pydantic's `exclude_defaults` does not know.
    """
    usual = type(retriever.config).model_construct().model_dump(mode="json")
    said = canonical(_without_defaults(_description(retriever), usual))
    total = hashlib.blake2b(said.encode(), digest_size=16)
    total.update(json.dumps(sorted(retriever.vocabulary().items())).encode())
    for name, tensor in sorted(retriever.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _without_defaults(description: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """A description (and that of a fork's halves in it) with only the fields that differ from their defaults."""
    said = {**description, "retriever": differing(description["retriever"], usual)}
    said |= {"text": spoken(description["text"])} if "text" in description else {}
    inner = description.get("query")
    if isinstance(inner, Mapping) and "retriever" in inner:
        said["query"] = _without_defaults(inner, usual)
    return said


def _description(retriever: "Retriever") -> dict[str, Any]:
    return {"kind": retriever.kind, "patch_width": retriever.patch_width, **retriever.description()}
