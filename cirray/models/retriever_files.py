"""A retriever on disk: `config.json`, `model.safetensors` and the tokenizer's files, in one folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from cirray.core.errors import ArtifactError, ConfigError, damage_told, reason_of
from cirray.models.base import RETRIEVERS, Retriever, RetrieverKind
from cirray.models.description import CONFIG, WEIGHTS
from cirray.models.sources.file_forms import refuse_other_files
from cirray.models.sources.files import check_floats


def load_retriever(folder: str | Path, device: str | torch.device = "cpu") -> Retriever:
    """Read what `Retriever.save` wrote, in evaluation mode.

    Raises ArtifactError when a file is missing, damaged or not of a retriever.
    """
    path = Path(folder)
    if (path / WEIGHTS).is_file():
        refuse_other_files(path / WEIGHTS)
    try:
        weights = load_file(str(path / WEIGHTS))
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    retriever = build_saved(path)
    own = retriever.state_dict()
    floats = {name: value for name, value in weights.items() if name in own and own[name].is_floating_point()}
    check_floats(str(folder), floats)
    try:
        retriever.load_state_dict(weights)
    except RuntimeError as error:
        raise ArtifactError(f"The weights in {str(folder)!r} do not fit its config: {reason_of(error, 300)}") from None
    return retriever.to(device).eval()


def build_saved(folder: Path) -> Retriever:
    """The retriever that stands in a folder, with random weights: what can be known of it before weights are loaded.

    Raises ArtifactError when its description is missing, damaged or not of a retriever.
    """
    description = read_description(folder)
    with torch.random.fork_rng(devices=[]), damage_told(folder / CONFIG, "Make or fetch the model again."):
        return build_described(description, folder)


def read_description(folder: Path) -> dict[str, Any]:
    """What a retriever's `config.json` says: `kind`, `patch_width`, `retriever` (its settings) and the kind's own.

    Raises ArtifactError when it is missing, damaged, or of no retriever that is known here.
    """
    try:
        description = dict(json.loads((folder / CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise _unreadable(folder, error) from None
    _kind_of(description, folder)
    return description


def check_saved(folder: Path) -> None:
    """Refuse a retriever whose weights file is missing or cut short; its header is read, and no weights.

    Raises ArtifactError saying what is wrong.
    """
    try:
        with safe_open(str(folder / WEIGHTS), "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from None


def _unreadable(folder: Path, error: Exception) -> ArtifactError:
    reason = reason_of(error, 200)
    return ArtifactError(f"{str(folder)!r} holds no readable retriever ({reason}). Give a checkpoint's model folder.")


def build_described(description: Mapping[str, Any], folder: Path) -> Retriever:
    """The retriever that a folder's `config.json` describes, with random weights and the folder's tokenizer.

    Raises ArtifactError when it describes something else.
    """
    return _kind_of(description, folder).load(description, folder)


def _kind_of(description: Mapping[str, Any], folder: Path) -> RetrieverKind:
    try:
        return RETRIEVERS.get(str(description.get("kind")))
    except ConfigError as error:
        raise ArtifactError(f"{str(folder / CONFIG)!r} describes no retriever that is known here. {error}") from None
