"""Which gallery a name stands for, and which ones before it: a small file that a running service follows.

`cirray gallery use GALLERY` appends to the file of a name, and `--back true` takes the last one off again. The file is
replaced in one step, so that whoever reads it finds one of the two.
"""

import json
import time
from dataclasses import asdict, dataclass

from cirray.core import storage
from cirray.core.errors import ArtifactError

SUFFIX = ".json"
_KEPT = 20


@dataclass(frozen=True)
class Use:
    """A gallery or index, and the checkpoint that queries it."""

    index: str
    checkpoint: str
    at: str = ""
    """When it was chosen."""


def is_name(place: str) -> bool:
    """Whether a place is the file of a name, and no artifact."""
    return storage.without_query(place).endswith(SUFFIX)


def uses_of(place: str) -> list[Use]:
    """What a name has stood for, the current one last. Raises ArtifactError: the file is missing or damaged."""
    if not storage.exists(place):
        raise ArtifactError(f"There is no name at {place!r}; `cirray gallery use GALLERY` makes one.")
    try:
        found = [Use(**item) for item in json.loads(storage.read_bytes(place))["uses"]]
    except (ValueError, KeyError, TypeError):
        found = []
    if not found:
        raise ArtifactError(
            f"{place!r} is damaged: it names no gallery. Choose one again: `cirray gallery use GALLERY`."
        )
    return found


def write_uses(place: str, uses: list[Use]) -> None:
    """Replace the file of a name in one step."""
    told = {"uses": [asdict(use) for use in uses[-_KEPT:]]}
    storage.write_bytes(place, (json.dumps(told, indent=1) + "\n").encode())


def use_now(index: str, checkpoint: str) -> Use:
    """A gallery and its checkpoint as chosen at this moment, by whole paths."""
    return Use(_whole(index), _whole(checkpoint), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _whole(place: str) -> str:
    return str(storage.local_path(place).absolute()) if storage.is_local(place) else place


def use_of(index: str, checkpoint: str) -> Use:
    """What a name stands for now; an index or a gallery that is no name stands for itself.

    Raises ArtifactError: the file of the name is missing or damaged.
    """
    return uses_of(index)[-1] if is_name(index) else Use(index, checkpoint)
