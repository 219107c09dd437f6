"""A retriever on disk: `config.json`, `model.safetensors` and the tokenizer's files, in one folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cirray.core.contents import canonical, spoken
from cirray.core.errors import ArtifactError, ConfigError, damage_told
from cirray.core.trees import differing
from cirray.models.base import RETRIEVERS, Retriever
from cirray.models.sources.file_forms import refuse_other_files
from cirray.models.sources.files import check_floats

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_retriever(retriever: Retriever, folder: Path) -> None:
    """Write a retriever; the folder is made when absent."""
    folder.mkdir(parents=True, exist_ok=True)
    retriever.save_words(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in retriever.state_dict().items()}
    save_file(weights, str(folder / WEIGHTS), metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(_description(retriever), indent=2, sort_keys=True) + "\n")


def load_retriever(folder: str | Path, device: str | torch.device = "cpu") -> Retriever:
    """Read what `save_retriever` wrote, in evaluation mode.

    Raises:
        ArtifactError: when a file is missing, damaged or not of a retriever.
    """
    path = Path(folder)
    if (path / WEIGHTS).is_file():
        refuse_other_files(path / WEIGHTS)
    try:
        description = dict(json.loads((path / CONFIG).read_text()))
        weights = load_file(str(path / WEIGHTS))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"{str(folder)!r} holds no readable retriever ({reason}). Give a checkpoint's model folder."
        ) from None
    with torch.random.fork_rng(devices=[]), damage_told(path / CONFIG, "Make or fetch the model again."):
        retriever = build_described(description, path)
    own = retriever.state_dict()
    floats = {name: value for name, value in weights.items() if name in own and own[name].is_floating_point()}
    check_floats(str(folder), floats)
    try:
        retriever.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(f"The weights in {str(folder)!r} do not fit its config: {reason}") from None
    return retriever.to(device).eval()


def build_described(description: Mapping[str, Any], folder: Path) -> Retriever:
    """The retriever that a folder's `config.json` describes, with random weights and the folder's tokenizer.

    Raises:
        ArtifactError: when it describes something else.
    """
    try:
        kind = RETRIEVERS.get(str(description.get("kind")))
    except ConfigError as error:
        raise ArtifactError(f"{str(folder / CONFIG)!r} describes no retriever that is known here. {error}") from None
    return kind.load(description, folder)


def retriever_digest(retriever: Retriever) -> str:
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


def _description(retriever: Retriever) -> dict[str, Any]:
    return {"kind": retriever.kind, "patch_width": retriever.patch_width, **retriever.description()}
