"""Whether a gallery is still the one that was opened: another one in its place has another manifest."""

import os
import time
from contextlib import nullcontext
from typing import Any

from cirray.core import storage
from cirray.core.contents import MANIFEST
from cirray.core.errors import ArtifactError, RemadeError, StoreError

NAME = "images"
"""The table's, in LanceDB's words."""
TABLE = f"{NAME}.lance"
"""The table's folder in a gallery's."""
GONE = "its table is not there any more (deleted or moved)"
_LOOK_S = 1.0
"""Seconds between two looks into an object store."""


class Made:
    """The gallery that was at a place when this was made. A bare table, without a manifest, is taken as it is."""

    def __init__(self, uri: str, patient: bool = False) -> None:
        """Remember which it is; the `patient` wait for their store. Raises OSError or RuntimeError when it is away."""
        self._uri, self._place, self._patient = uri, storage.join(uri, MANIFEST), patient
        self.is_local = storage.is_local(uri)
        self._versions = storage.join(uri, TABLE, "_versions")
        self._known, self._looked_at = self._mark(), time.monotonic()

    def check(self) -> None:
        """Refuse to go on with another gallery.

        Raises:
            RemadeError: there is another one.
            OSError, RuntimeError: there is none any more, or the store is away.
        """
        now = time.monotonic()
        if self.is_local and not os.path.isdir(self._versions):
            raise RuntimeError(GONE)
        if self._known is None or (not self.is_local and now - self._looked_at < _LOOK_S):
            return
        mark = self._mark()
        if mark is None:
            raise RuntimeError(GONE)
        if mark != self._known:
            raise RemadeError(f"The gallery {self._uri!r} was made again. Open it anew; this one stays what it was.")
        self._looked_at = now

    def _mark(self) -> Any:
        """What another manifest has another one of; None without a manifest."""
        try:
            if self.is_local:
                found = os.stat(self._place)
                return found.st_ino, found.st_mtime_ns, found.st_size
            with nullcontext() if self._patient else storage.hurried():
                return storage.read_bytes(self._place) if storage.exists(self._place) else None
        except FileNotFoundError:
            return None
        except (ArtifactError, StoreError) as error:
            raise RuntimeError(str(error)) from None
