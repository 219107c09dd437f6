"""Find the frozen vision tower that a run names: in an artifact, a folder, or a backbone's source."""

from pathlib import Path
from typing import TYPE_CHECKING

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import ArtifactError

if TYPE_CHECKING:
    from cirray.models.towers.hf_blip2 import VisionTower


def find_tower(uri: str) -> Path | str:
    """Folder of a tower's files: `vision/` of a `towers` or `checkpoint` artifact, or the name itself.

    Raises ArtifactError when there is nothing at a path or URI, or an artifact holds no vision tower.
    """
    is_place = uri.startswith(("/", "~", ".")) or "://" in uri
    if is_place and not storage.exists(uri):
        raise ArtifactError(f"There is no vision tower at {uri!r}. Run `cirray towers` first, or correct the name.")
    if not is_complete(uri):
        return storage.local_path(uri) if storage.is_local(uri) and storage.exists(uri) else uri
    folder = localize(uri)
    for place in (folder / "vision", folder / "model" / "vision"):
        if place.is_dir():
            return place  # whatever it lacks is said by who reads it
    if any((folder / name).is_file() for name in ("config.json", "open_clip_config.json", "modules.json")):
        return folder
    raise ArtifactError(f"The artifact {uri!r} holds no vision tower; name a towers or checkpoint artifact.")


def open_tower(uri: str) -> "VisionTower":
    """The frozen tower that `find_tower` finds, in fp32.

    Raises ArtifactError when there is none, or it cannot be read.
    """
    from cirray.models.towers.hf_blip2 import load_vision_tower

    return load_vision_tower(find_tower(uri))
