"""Folders that hold a model of this package: an artifact, an export, or the model's own folder."""

import json
from pathlib import Path

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import ArtifactError


def model_folder(folder: Path) -> tuple[Path, str]:
    """Folder of the model's files in an artifact, and their kind: "retriever" or "generator".

    Raises ArtifactError when there is none.
    """
    for place in (folder, folder / "model"):
        try:
            description = json.loads((place / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(description, dict) and "kind" in description:
            return place, "retriever" if "retriever" in description else "generator"
    raise ArtifactError(
        f"{str(folder)!r} holds no model of cirray's. Give a checkpoint or generator artifact, or an exported folder."
    )


def own_model(place: str) -> tuple[Path, str] | None:
    """Folder and kind (`model_folder`) of an artifact, an export or a bare model folder of this package, else None."""
    complete = is_complete(place)
    if not complete and not storage.is_local(place):
        return None
    try:
        return model_folder(localize(place) if complete else storage.local_path(place))
    except ArtifactError:
        return None
