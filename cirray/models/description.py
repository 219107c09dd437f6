"""A retriever as files, `config.json`, `model.safetensors` and the tokenizer's, and the digest over what they hold."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from cirray.core.contents import canonical, spoken

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
    """32 hex digits over the configuration's identity, vocabulary and weights; independent of device and file.

    What a field is decides whether it counts, as it is declared (`cirray.core.fields`): no place and no effort does.
    """
    total = hashlib.blake2b(canonical(_identity(retriever)).encode(), digest_size=16)
    total.update(json.dumps(sorted(retriever.vocabulary().items())).encode())
    for name, tensor in sorted(retriever.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _identity(retriever: "Retriever") -> dict[str, Any]:
    """A description, or that of a fork's half in it, with the identity of the configuration."""
    said = _description(retriever)
    inner = said["query"] if isinstance(said.get("query"), Mapping) else said
    own = {**inner, "retriever": retriever.config.identity()}
    own |= {"text": spoken(inner["text"])} if "text" in inner else {}
    return own if inner is said else {**said, "query": own}


def _description(retriever: "Retriever") -> dict[str, Any]:
    return {"kind": retriever.kind, "patch_width": retriever.patch_width, **retriever.description()}
