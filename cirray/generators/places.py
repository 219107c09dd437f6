"""Find the generator that a run names."""

from pathlib import Path

from cirray.core.artifacts import localize
from cirray.core.errors import ArtifactError


def find_generator(uri: str) -> Path:
    """Local folder of a generator's files: its artifact's root, or `generator/` in it.

    Raises:
        ArtifactError: when there is none.
    """
    folder = localize(uri, "generator")
    for place in (folder, folder / "generator"):
        if (place / "config.json").is_file():
            return place
    raise ArtifactError(f"The artifact {uri!r} holds no generator (no config.json). Train one first.")
