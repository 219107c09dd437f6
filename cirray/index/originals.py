"""The picture files that an index was made of, so that a page can show one large while it is still there.

The index keeps their names below one folder with the digests of their bytes; where that folder lay is told by the
manifest, so that the same pictures in another place give the same index.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Protocol

ORIGINALS = "originals.json"

Original = tuple[str, str]
"""Name below the folder, and digest of the file's bytes; both empty where there is no such file."""


class OriginalFiles(Protocol):
    """Files that the pictures of a gallery were made of."""

    def find(self, row: int) -> tuple[Path, str] | None:
        """Path and digest of a row's file; None when it has none."""


@dataclass(frozen=True)
class Originals:
    """Files of the gallery, by row; parsed at the first use."""

    root: str
    """Folder that held them."""
    text: bytes
    """Their names as they are kept, read when the index is opened: another may take its place later."""

    @cached_property
    def rows(self) -> list[Original]:
        """Name and digest of every row."""
        return [(name, digest) for name, digest in json.loads(self.text)]

    def find(self, row: int) -> tuple[Path, str] | None:
        """Path and digest of a row's file; None when it has none, or one that is not below the folder."""
        name, digest = self.rows[row]
        below = PurePath(name)
        if not name or not digest or below.is_absolute() or ".." in below.parts:
            return None
        return Path(self.root) / below, digest


def write_originals(folder: Path, rows: Sequence[Original]) -> list[str]:
    """Write the names into an index folder; returns the names of the files written (none without originals)."""
    if not any(name for name, _ in rows):
        return []
    (folder / ORIGINALS).write_text(json.dumps(rows), encoding="ascii")
    return [ORIGINALS]


def open_originals(folder: Path, names: Sequence[str], root: str) -> Originals | None:
    """The originals of an index, or None when it was built without."""
    return Originals(root, (folder / ORIGINALS).read_bytes()) if ORIGINALS in names and root else None
