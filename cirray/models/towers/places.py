"""Find the frozen vision tower that a run names: in an artifact, a folder, or a backbone's source; and the towers
shipped with the package, for the embedded world: trained on text and images of no world.
"""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import ArtifactError, unknown_name

if TYPE_CHECKING:
    from cirray.models.towers.hf_blip2 import VisionTower

SHAPES_VISION, SHAPES_LANGUAGE, SHAPES_CLIP = "shapes-vision", "shapes-language", "shapes-clip"


def asset_folder(name: str) -> Path:
    """Folder of a shipped tower. Raises ArtifactError when the package has no such asset; names those it has."""
    root = Path(str(files("cirray"))) / "assets"
    if not (root / name / "config.json").is_file():
        known = sorted(path.name for path in root.glob("*") if (path / "config.json").is_file())
        raise ArtifactError(f"{unknown_name('asset', name, known)} Train it instead (set it to `train`).")
    return root / name


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
