"""One of several processes that hold a gallery together: the images of its shard, and what is asked of them.

Galleries are named by place and digest, so that an old and a new one can be held while a service goes over. What nobody
has asked about for a while is let go.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.catalogue.follower import Follower
from cirray.catalogue.opening import open_gallery
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, AwayError, CirrayError
from cirray.core.log import get_logger
from cirray.index.protocol import Absent, Answers, Shown
from cirray.index.shards import Shard
from cirray.index.store import GalleryIndex, IndexMeta

KEPT_S = 60.0
"""Seconds after the last question about a gallery until it is let go."""
_ASKED = frozenset({"picture", "original", "patches", "texts_of", "check", "tag", "page", "before", "facets"})
"""Methods of a gallery that others may call."""
_LOG = get_logger("catalogue.searcher")


@dataclass(frozen=True)
class Key:
    """A gallery or index as it was made once."""

    index: str
    digest: str
    created: str
    """When; another one of the same inputs differs in this alone."""

    @classmethod
    def of(cls, index: str) -> "Key":
        """What is there now. Raises ArtifactError: nothing is, or it is damaged."""
        manifest = read_manifest(index)
        return cls(index, manifest.digest, manifest.created)


@dataclass(frozen=True)
class State:
    """A shard as it is now."""

    images: int
    version: int
    """Of the table that it shows; 0 for an index."""
    fault: str
    """See `Source`."""
    failures: int
    meta: IndexMeta
    metadata: pa.Schema | None
    """Columns of metadata; None for a gallery without."""
    keeps_pictures: bool
    keeps_patches: bool
    examples: tuple[tuple[str, str], ...]


class _Held:
    """The shard of one gallery."""

    def __init__(self, key: Key, shard: Shard, verify: bool) -> None:
        if Key.of(key.index) != key:
            raise ArtifactError(f"The gallery {key.index!r} was made again; start the service anew.")
        found = open_gallery(key.index, None, verify, shard=shard)
        self.follower: Follower | None = found if isinstance(found, Follower) else None
        self._index: GalleryIndex | None = None if isinstance(found, Follower) else found
        if self.follower is not None:
            self.follower.start()
        self.asked_at = time.monotonic()

    @property
    def gallery(self) -> GalleryIndex:
        """As it is now; it has been asked about."""
        self.asked_at = time.monotonic()
        if self.follower is not None:
            return self.follower.gallery
        assert self._index is not None
        return self._index

    def close(self) -> None:
        """Stop following."""
        if self.follower is not None:
            self.follower.stop()


class Searcher:
    """Answers for a shard of galleries. Any thread may ask."""

    def __init__(self, shard: Shard, verify: bool = True) -> None:
        """Hold nothing yet; `verify`: compare an index's files with their digests."""
        self._shard, self._verify = shard, verify
        self._lock = threading.Lock()
        self._held: dict[Key, _Held] = {}
        self._loading: dict[Key, CirrayError | None] = {}

    def answer(self, method: str, *args: Any) -> Any:
        """What a method says, or, as a value, the error that it raises."""
        try:
            return getattr(self, method)(*args)
        except CirrayError as error:
            return error

    def hold(self, key: Key) -> None:
        """Load the shard of a gallery.

        Raises:
            CirrayError: it is missing, damaged or made again, or its store cannot be read.
        """
        held = _Held(key, self._shard, self._verify)
        with self._lock:
            self._held[key] = held

    def state(self, key: Key) -> State | None:
        """The shard as it is now; None while it is being loaded, which the first question begins.

        Raises:
            CirrayError: it cannot be loaded; the next question tries again.
        """
        self._let_go()
        with self._lock:
            held, error = self._held.get(key), self._loading.get(key)
            if held is None and error is None and key not in self._loading:
                self._loading[key] = None
                threading.Thread(target=self._load, args=(key,), name="cirray-load", daemon=True).start()
        if error is not None:
            del self._loading[key]
            raise error
        return None if held is None else _state(held)

    def search(self, key: Key, queries_BD: np.ndarray, k: int, chosen: Sequence[str | None] | None) -> Answers:
        """The k best images of each query, among those that its filter lets pass (None: all)."""
        gallery = self._gallery(key)
        allowed = chosen and [None if text is None else gallery.allowed(text) for text in chosen]
        found = gallery.search(queries_BD, k, allowed)
        return found.ids, found.scores_BK

    def shown(self, key: Key, ids: Sequence[str], names: Sequence[str]) -> list[Shown | Absent]:
        """See `GalleryIndex.shown`; an id that is not here was removed meanwhile."""
        gallery = self._gallery(key)
        known = [name for name in ids if name in gallery]
        found = dict(zip(known, gallery.shown(known, names), strict=True))
        return [found.get(name, Absent()) for name in ids]

    def ask(self, key: Key, method: str, *args: Any) -> Any:
        """What a method of the gallery says."""
        if method not in _ASKED:
            raise ValueError(f"no question: {method}")
        return getattr(self._gallery(key), method)(*args)

    def _gallery(self, key: Key) -> GalleryIndex:
        held = self._held.get(key)
        if held is None:
            raise AwayError("This searcher does not hold the gallery yet.")
        return held.gallery

    def _load(self, key: Key) -> None:
        try:
            self.hold(key)
            self._loading.pop(key)
        except CirrayError as error:
            self._loading[key] = error
        except Exception as error:  # noqa: BLE001 - told to whoever asks next
            _LOG.exception("a shard of %s was not loaded", key.index)
            self._loading[key] = ArtifactError(f"The gallery {key.index!r} cannot be opened: {error!r}.")

    def close(self) -> None:
        """Let everything go."""
        self._let_go(0.0)

    def _let_go(self, kept_s: float | None = None) -> None:
        limit = KEPT_S if kept_s is None else kept_s
        with self._lock:
            old = [key for key, held in self._held.items() if time.monotonic() - held.asked_at >= limit]
            gone = [self._held.pop(key) for key in old]
        for held in gone:
            held.close()


def _state(held: _Held) -> State:
    gallery, follower = held.gallery, held.follower
    fault, failures = (follower.fault, follower.failures) if follower else ("", 0)
    schema, names = gallery.columns.schema, gallery.columns.names
    metadata = pa.schema([schema.field(name) for name in names]) if names else None
    return State(
        len(gallery), getattr(gallery, "version", 0), fault, failures, gallery.meta, metadata, gallery.keeps_pictures,
        gallery.keeps_patches, gallery.examples,
    )  # fmt: skip
