"""Find the generator that a run names."""

import json
from pathlib import Path
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import ArtifactError

CONFIG = "config.json"
_INNER = ((), ("generator",))


def find_generator(uri: str) -> Path:
    """Local folder of a generator's files: its artifact's root, or `generator/` in it; or a bare folder of them.

    Raises ArtifactError when there is none.
    """
    bare = storage.is_local(uri) and not is_complete(uri) and storage.exists(storage.join(uri, CONFIG))
    folder = storage.local_path(uri) if bare else localize(uri, "generator")
    for inner in _INNER:
        if folder.joinpath(*inner, CONFIG).is_file():
            return folder.joinpath(*inner)
    raise ArtifactError(f"The artifact {uri!r} holds no generator (no {CONFIG}). Train one first.")


def described(uri: str, kind: str = "") -> dict[str, Any]:
    """What a generator's files say about it. Nothing else is fetched.

    Raises ArtifactError when there is none, or one of another kind.
    """
    places = (storage.join(uri, *inner, CONFIG) for inner in _INNER)
    place = next((place for place in places if storage.exists(place)), None)
    try:
        description = json.loads(storage.read_bytes(place)) if place else {}
        found = description["kind"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ArtifactError(f"{uri!r} holds no generator (no readable {CONFIG}). Train one first.") from None
    if kind and found != kind:
        raise ArtifactError(f"{uri!r} is a generator of kind {found!r}; set generator.kind={found}.")
    return dict(description)
