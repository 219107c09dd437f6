"""Which index is searched when none is named: the last one made, and by the checkpoint that it was made with."""

import json
import time
from typing import Any

from cirray.core import storage
from cirray.core.artifacts import is_complete, read_manifest
from cirray.core.config import given
from cirray.core.errors import ArtifactError
from cirray.core.log import get_logger
from cirray.index.store import read_searchable
from cirray.index.uses import is_name, uses_of

LAST = "last-index.json"
"""Below a root: place of the index that was asked for last, and when."""
_LOGGER = get_logger("index")


def remember(root: str, index: str) -> None:
    """Note that an index was made, or asked for again."""
    place = str(storage.local_path(index).absolute()) if storage.is_local(index) else index
    told = {"index": place, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    storage.write_bytes(storage.join(root, LAST), (json.dumps(told, indent=1) + "\n").encode())


def chosen(run: Any) -> tuple[str, str]:
    """Checkpoint and index of a run: as given, else the last index made below its root, and the checkpoint it names.

    Says in one line what was taken.

    Raises ArtifactError when there is no index; where none was named, with the line that makes one.
    """
    index = run.index if given(run, "index") else _last(run.root, run.index)
    if is_name(index):
        use = uses_of(index)[-1]
        return run.checkpoint if given(run, "checkpoint") else use.checkpoint, use.index
    if not given(run, "index") and not is_complete(index):
        raise ArtifactError(
            f"There is no index below {run.root!r} yet. Make one of a folder of pictures, without any training: cirray "
            "index --model openai/clip-vit-base-patch32 --images DIR. Or name yours with --index."
        )
    if not given(run, "checkpoint"):
        read_searchable(index)  # its absence is told, not that of a model
    checkpoint = run.checkpoint if given(run, "checkpoint") else made_with(index, run.checkpoint)
    if not (given(run, "index") and given(run, "checkpoint")):
        _LOGGER.info("index %s, model %s", index, checkpoint)
    return checkpoint, index


def _last(root: str, usual: str) -> str:
    """The newer one of the noted index and the usual one."""
    note = storage.join(root, LAST)
    if not storage.exists(note):
        return usual
    try:
        told = json.loads(storage.read_bytes(note))
        index, at = str(told["index"]), str(told["at"])
    except (ValueError, KeyError, TypeError):
        return usual
    if not is_complete(index):
        return usual
    return usual if is_complete(usual) and read_searchable(usual).created > at else index


def made_with(index: str, usual: str) -> str:
    """The checkpoint in an index's manifest if it is still there and the same, else the usual one."""
    if not is_complete(index):
        return usual
    manifest = read_searchable(index)
    place = str(manifest.config.get("checkpoint", ""))
    same = bool(place) and is_complete(place) and read_manifest(place).digest == manifest.inputs.get("checkpoint")
    if not same and not is_complete(usual):
        raise ArtifactError(
            f"The model that made the index {index!r} is not at {place!r} any more, or is another one. Name it with "
            "--checkpoint, or index the pictures again."
        )
    return place if same else usual
