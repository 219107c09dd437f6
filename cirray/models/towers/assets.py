"""Towers shipped with the package, for the embedded world: trained on text and images of no world."""

from importlib.resources import files
from pathlib import Path

from cirray.core.errors import ArtifactError, unknown_name

SHAPES_VISION, SHAPES_LANGUAGE, SHAPES_CLIP = "shapes-vision", "shapes-language", "shapes-clip"


def asset_folder(name: str) -> Path:
    """Folder of a shipped tower. Raises ArtifactError when the package has no such asset; names those it has."""
    root = Path(str(files("cirray"))) / "assets"
    if not (root / name / "config.json").is_file():
        known = sorted(path.name for path in root.glob("*") if (path / "config.json").is_file())
        raise ArtifactError(f"{unknown_name('asset', name, known)} Train it instead (set it to `train`).")
    return root / name
