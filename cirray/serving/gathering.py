"""A gallery whose images lie in several searchers: each is asked, and the answers are put together.

Every id is in one shard (`cirray.index.shards`), so the k best of all are among the k best of each. A searcher that
does not answer in time is asked nothing more until it answers again; meanwhile the service refuses, or says of every
answer which share of the gallery was searched.

Shapes: B queries, K answers, D width, P patches, W their width.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cirray.catalogue.searcher import Key, State
from cirray.core.errors import AwayError, CirrayError
from cirray.core.log import get_logger
from cirray.index.metadata import Columns, Counted, Facet, joined
from cirray.index.protocol import Absent, Allowed, Answers, Page, Searched, Shown, best_of
from cirray.index.shards import shard_of
from cirray.index.store import LIVING, GalleryIndex, UnknownImageError, check_encoder, read_searchable

Ask = Callable[..., Awaitable[Any]]
"""Asks one searcher: the method of `Searcher`, then its arguments."""
LOOK_S, STATE_S, PARTIAL_S, AGAIN_S = 0.5, 2.0, 30.0, 1.0
"""Seconds between two looks at the searchers, for the answer to one, of a start until some are enough, and for the
second answer of a searcher whose process died."""
_NEAR = 256
"""Ids of a shard that are merged; among more the place of a page is looked for."""
_LOG = get_logger(__name__)


class Line:
    """Asks searchers from any thread, in an event loop of its own."""

    def __init__(self, asks: Sequence[Ask], timeout_s: float) -> None:
        """Ask so, and wait so long for each answer."""
        self._asks, self._timeout_s = asks, timeout_s
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="cirray-gather", daemon=True).start()

    def __len__(self) -> int:
        return len(self._asks)

    def ask(self, calls: Mapping[int, tuple[Any, ...]], timeout_s: float | None = None) -> dict[int, Any]:
        """Ask some searchers at once; of one that does not answer in time the AwayError that says so."""

        async def every() -> list[Any]:
            limit = self._timeout_s if timeout_s is None else timeout_s
            return await asyncio.gather(*(self._one(number, call, limit) for number, call in calls.items()))

        found = asyncio.run_coroutine_threadsafe(every(), self._loop).result()
        return dict(zip(calls, found, strict=True))

    async def _one(self, number: int, call: tuple[Any, ...], limit: float) -> Any:
        """One answer; asked again at once where the process that was asked is gone, since another may be there."""
        for seconds in (limit, min(limit, AGAIN_S)):
            try:
                return await asyncio.wait_for(self._asks[number](*call), seconds)
            except TimeoutError:
                break
            except Exception as error:  # noqa: BLE001 - whatever Ray says of a process that died
                _LOG.debug("searcher %d: %r", number, error)
        return away([number], len(self))


def away(numbers: Sequence[int], of: int) -> AwayError:
    """The error of searchers that do not answer."""
    told = ", ".join(str(number + 1) for number in numbers)
    one = len(numbers) == 1
    return AwayError(
        f"{'Searcher' if one else 'Searchers'} {told} of {of}, which hold{'s' * one} a part of the gallery, "
        f"do{'es' * one} not answer now. The request may be repeated."
    )


class Gathering:
    """Follows a gallery in several searchers; see `Source`."""

    def __init__(
        self, index: str, encoder_digest: str | tuple[str, ...], vision_digest: str, line: Line, partial: bool = False
    ) -> None:  # fmt: skip
        """Wait until all searchers hold their shards; with `partial` some are enough after half a minute.

        Args:
            index: the index or gallery.
            encoder_digest: digest of the encoder that will query it, or its `index_digests`.
            vision_digest: digest of the encoder's vision tower.
            line: asks the searchers.
            partial: answer without searchers that are away.

        Raises:
            ArtifactError: missing or damaged.
            IndexMismatchError: when another encoder made the vectors.
            StoreError: when its store cannot be read.
        """
        manifest = read_searchable(index)
        towers = (str(manifest.extra.get("vision_digest", "")), vision_digest)
        check_encoder(str(manifest.extra.get("encoder_digest", "")), encoder_digest, index, towers)
        self._key, self.living = Key.of(index), manifest.kind == LIVING
        self._line, self.partial = line, partial
        self.states: dict[int, State] = {}
        self._away, self._lock, self._ended = set[int](), threading.Lock(), threading.Event()
        self._lost_at: dict[int, float] = {}
        self._wait()

    @property
    def there(self) -> set[int]:
        """Searchers that answer."""
        return set(self.states) - self._away

    @property
    def failures(self) -> int:
        """See `Source`."""
        return max((state.failures for state in self.states.values()), default=0)

    @property
    def fault(self) -> str:
        """See `Source`."""
        missing = sorted(self._away)
        if missing:
            return f"is searched to {self.share(self.there):.0%}: {away(missing, len(self._line))}"
        return next((state.fault for state in self.states.values() if state.fault), "")

    def share(self, numbers: Collection[int]) -> float:
        """Share of the images that some searchers hold; one that never answered counts as the others on average."""
        known = [state.images for state in self.states.values()]
        if not sum(known):
            return len(numbers) / len(self._line)
        there = sum(state.images for number, state in self.states.items() if number in numbers)
        return there * len(known) / (sum(known) * len(self._line))

    def poll(self) -> GalleryIndex:
        """Look at the searchers now; returns the gallery.

        Raises:
            CirrayError: what keeps a searcher from holding its shard.
        """
        self._look()
        return self.gallery

    def _look(self) -> None:
        begin = time.monotonic()
        found = self._line.ask({number: ("state", self._key) for number in range(len(self._line))}, STATE_S)
        there = {number: state for number, state in found.items() if isinstance(state, State)}
        with self._lock:
            self.states |= there
            lost = {number for number, at in self._lost_at.items() if at >= begin}  # this look may be older than that
            self._away = set(found) - set(there) | lost
            if self.states:
                self.gallery: GalleryIndex = self._gathered()
        self._raise(found)

    def start(self) -> None:
        """Look at the searchers in a thread."""
        threading.Thread(target=self._run, name="cirray-searchers", daemon=True).start()

    def stop(self) -> None:
        """Stop looking; the searchers let the gallery go when nobody asks."""
        self._ended.set()

    def hurry(self) -> None:
        """Nothing: searchers look at the table by themselves."""

    def every(self, method: str, *args: Any) -> dict[int, Any]:
        """Ask all searchers that are there.

        Raises:
            AwayError: one is away, and the service refuses then; or all are.
            CirrayError: what one says.
        """
        return self.some(dict.fromkeys(range(len(self._line)), (method, *args)), self.partial)

    def some(self, calls: Mapping[int, tuple[Any, ...]], partial: bool = False) -> dict[int, Any]:
        """Ask some searchers, each its own; `partial`: those that are there are enough. Errors as `every`."""
        missing = self._away & set(calls)
        asked = {} if missing and not partial else {n: call for n, call in calls.items() if n not in missing}
        found = self._line.ask({n: (call[0], self._key, *call[1:]) for n, call in asked.items()})
        lost = {n for n, value in found.items() if isinstance(value, AwayError)}
        if lost:
            with self._lock:
                self._away |= lost
                self._lost_at |= dict.fromkeys(lost, time.monotonic())
        missing |= lost
        if missing and (not partial or len(missing) == len(calls)):
            raise away(sorted(missing), len(self._line))
        self._raise(found)
        return {n: value for n, value in found.items() if n not in lost}

    def _raise(self, found: Mapping[int, Any]) -> None:
        """Raise what a searcher says."""
        for value in found.values():
            if isinstance(value, CirrayError) and not isinstance(value, AwayError):
                raise value

    def owner(self, image_id: str, method: str) -> Any:
        """What the searcher of an id says of it. Errors as `every`; an unknown id is told with the size of all."""
        number = shard_of(image_id, len(self._line))
        try:
            return self.some({number: ("ask", method, image_id)})[number]
        except UnknownImageError:
            raise self.gallery.unknown(image_id) from None

    def owners(
        self, ids: Sequence[str], call: Callable[[list[str]], tuple[Any, ...]], partial: bool = False
    ) -> tuple[dict[str, Any], float]:
        """What the searchers of some ids say of them, a value an id, and the share of all images whose searchers were
        there. Errors as `every`.
        """
        parts: dict[int, list[str]] = {}
        for name in ids:
            parts.setdefault(shard_of(name, len(self._line)), []).append(name)
        found = self.some({number: call(names) for number, names in parts.items()}, partial)
        told = {name: item for number, items in found.items() for name, item in zip(parts[number], items, strict=True)}
        return told, self.share(set(range(len(self._line))) - set(parts) | set(found))

    def _wait(self) -> None:
        """Return when the searchers hold their shards."""
        begin = time.monotonic()
        while True:
            self._look()
            enough = self.partial and len(self._away) < len(self._line) and time.monotonic() - begin > PARTIAL_S
            if not self._away or enough:
                return
            time.sleep(LOOK_S)

    def _run(self) -> None:
        told = ""
        while not self._ended.wait(LOOK_S):
            try:
                self._look()
                now = self.fault
            except CirrayError as error:
                now = str(error)
            if now != told:
                _LOG.warning("the gallery %s %s", self._key.index, now or "is whole again")
            told = now

    def _gathered(self) -> "Gathered":
        states = [self.states[number] for number in sorted(self.states)]
        version = max(state.version for state in states)
        digest = f"{self._key.digest[:16]}-{version}" if self.living else self._key.digest
        return Gathered(
            _Index(self), states[0].meta, digest, source=self, states=tuple(states), version=version,
            examples=tuple(dict.fromkeys(pair for state in states for pair in state.examples)),
        )  # fmt: skip


class _Index:
    """The search of all searchers; see `VectorIndex`."""

    def __init__(self, source: Gathering) -> None:
        self._source = source

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, ascending."""
        gallery = self._source.gallery
        return tuple(gallery.page(0, len(gallery)).ids)

    def search(self, queries_BD: np.ndarray, k: int, allowed: Allowed = None) -> Answers:
        """See `VectorIndex.search`."""
        return self._source.gallery.search(queries_BD, k, allowed)[:2]


@dataclass(frozen=True)
class Gathered(GalleryIndex):
    """A gallery in several searchers, by its ids."""

    source: Gathering = field(kw_only=True)
    states: tuple[State, ...] = field(kw_only=True)
    """Of the searchers that have ever answered."""
    version: int = field(kw_only=True)
    is_remote = True

    def __len__(self) -> int:
        return sum(state.images for state in self.states)

    def __contains__(self, image_id: str) -> bool:
        try:
            self.check(image_id)
        except UnknownImageError:
            return False
        return True

    def unknown(self, image_id: str) -> UnknownImageError:
        """The error for an id that is not here."""
        return UnknownImageError(f"The gallery has no image {image_id[:80]!r}. It holds {len(self):,}.")

    def check(self, image_id: str) -> None:
        """Raises UnknownImageError for an id that is not in the gallery."""
        self.source.owner(image_id, "check")

    def tag(self, image_id: str) -> str:
        """Text that changes with the picture of an id. Raises UnknownImageError for an unknown id."""
        return str(self.source.owner(image_id, "tag"))

    def picture(self, image_id: str) -> bytes:
        """Encoded picture of one image; empty when there is none. Raises UnknownImageError for an unknown id."""
        found: bytes = self.source.owner(image_id, "picture")
        return found

    @property
    def keeps_pictures(self) -> bool:
        """Whether there are pictures of its images."""
        return any(state.keeps_pictures for state in self.states)

    def original(self, image_id: str) -> tuple[Path, str] | None:
        """Path and digest of the file that an image was made of. Raises UnknownImageError for an unknown id."""
        found: tuple[Path, str] | None = self.source.owner(image_id, "original")
        return found

    @property
    def keeps_patches(self) -> bool:
        """Whether there are vision features of its images."""
        return any(state.keeps_patches for state in self.states)

    def patches(self, ids: Sequence[str]) -> np.ndarray:
        """Kept vision features of some images [n, P, W]. Raises UnknownImageError for an unknown id."""
        found, _ = self.source.owners(ids, lambda names: ("ask", "patches", names))
        return np.stack([found[name] for name in ids])

    def texts_of(self, image_id: str) -> tuple[str, ...]:
        """The data set's own texts about an image. Raises UnknownImageError for an unknown id."""
        found: tuple[str, ...] = self.source.owner(image_id, "texts_of")
        return found

    @cached_property
    def columns(self) -> Columns:
        """The columns, without rows."""
        metadata = next((state.metadata for state in self.states), None)
        return Columns((), None if metadata is None else metadata.empty_table())

    def allowed(self, chosen: str) -> Any:
        """The filter itself, once it is known to fit. Raises DataError for one that does not."""
        self.columns.mask(chosen)
        return chosen

    def search(self, queries_BD: np.ndarray, k: int, allowed: Any = None) -> Searched:
        """The k best images of each query; `allowed`: a filter a query, or None."""
        found: dict[int, Answers] = self.source.every("search", queries_BD, k, allowed)
        places, most = range(len(queries_BD)), min(k, sum(scores_BK.shape[1] for _, scores_BK in found.values()))
        answers = best_of(((places, part) for part in found.values()), len(places), most)
        return Searched(*answers, self.source.share(found))

    def shown(self, ids: Sequence[str], names: Sequence[str] = ()) -> Sequence[Shown | Absent]:
        """Size and metadata of some images."""
        if not ids:
            return []
        found, share = self.source.owners(ids, lambda some: ("shown", some, list(names)), self.source.partial)
        return [found.get(name, Absent(share)) for name in ids]

    def facets(self, chosen: str | None = None) -> Counted:
        """How many images pass a filter, and what their columns hold."""
        found: dict[int, Counted] = self.source.every("ask", "facets", chosen)
        parts: dict[str, list[Facet]] = {}
        for facet in (facet for counted in found.values() for facet in counted.facets):
            parts.setdefault(facet.column, []).append(facet)
        images, facets = sum(counted.images for counted in found.values()), [joined(some) for some in parts.values()]
        return Counted(images, facets, self.source.share(found))

    def page(self, offset: int, limit: int) -> Page:
        """Some ids, in ascending order; with `partial` of the searchers that are there from beginning to end."""
        while True:
            asked = self.source.there if self.source.partial else set(self.source.states)
            try:
                return Page(self._listed(asked or self.source.states, offset, limit), self.source.share(asked))
            except AwayError:
                if not self.source.partial or not asked:
                    raise

    def _listed(self, asked: Collection[int], offset: int, limit: int) -> list[str]:
        """Some ids of some searchers: where the page begins in each shard is found by halving."""
        ends = {n: min(self.source.states[n].images, offset) for n in asked}
        begins = dict.fromkeys(ends, 0)
        while ends[widest := max(ends, key=lambda n: ends[n] - begins[n])] - begins[widest] > _NEAR:
            middle = (begins[widest] + ends[widest]) // 2
            pivot = self.source.some({widest: ("ask", "page", middle, 1)})[widest].ids
            before = self.source.some(dict.fromkeys(ends, ("ask", "before", pivot[0])))
            later = sum(before.values()) > offset
            for number, count in before.items():
                begins[number] = begins[number] if later else max(begins[number], count)
                ends[number] = min(ends[number], count) if later else ends[number]
        found = self.source.some({n: ("ask", "page", begins[n], ends[n] - begins[n] + limit) for n in ends})
        names = sorted(name for page in found.values() for name in page.ids)
        start = offset - sum(begins.values())
        return names[start : start + limit]
