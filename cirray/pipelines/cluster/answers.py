"""Answers of a part that is not finished, kept as they come: a kill costs about a minute of a slow model."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from cirray.core import storage
from cirray.triplets.store import ANSWERS

AskedT = TypeVar("AskedT")
KEPT = (f"{ANSWERS}/*",)
"""Files from which a stage without parts goes on."""
PIECE_S = 60.0
"""Seconds that a piece of a part should take, by the rate of the one before it."""
_FIRST_PIECE = 32


class Answers:
    """What a worker asks about a part's rows, piece by piece; every piece is kept until the part is written."""

    def __init__(self, work_uri: str, batch: int = 1) -> None:
        """Keep answers below a stage's folder; pieces longer than `batch` are whole batches."""
        self._folder, self._batch, self._rows = storage.join(work_uri, ANSWERS), batch, _FIRST_PIECE

    def kept(self, part: str) -> dict[str, Any]:
        """Answers by key that a killed run has left of a part."""
        found = dict[str, Any]()
        for name in storage.list_files(self._folder):
            if name.startswith(f"{part}-") and name.endswith(".json"):
                found |= json.loads(storage.read_bytes(storage.join(self._folder, name)))
        return found

    def keep(self, part: str, answers: Mapping[str, Any]) -> None:
        """Keep answers, which JSON can hold, beside those that are kept of a part."""
        name = f"{part}-{time.time_ns()}.json"
        storage.write_bytes(storage.join(self._folder, name), json.dumps(answers).encode())

    def ask(
        self, part: str, asked: Mapping[str, AskedT], ask: Callable[[Sequence[AskedT]], Sequence[Any]],
        useful: Callable[[Any], object] = bool,
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
        """An answer of every key, and those of them that were made now.

        Args:
            part: its name.
            asked: what is asked, by key.
            ask: gives one answer for each, in order.
            useful: says whether an answer tells of the rate; what fails at once does not.
        """
        before = {key: answer for key, answer in self.kept(part).items() if key in asked}
        fresh, made = {key: item for key, item in asked.items() if key not in before}, dict[str, Any]()
        for answers in self.pieces(fresh, ask, useful):
            made |= answers
            if len(made) < len(fresh):
                self.keep(part, answers)
        return before | made, made

    def pieces(
        self, asked: Mapping[str, AskedT], ask: Callable[[Sequence[AskedT]], Sequence[Any]],
        useful: Callable[[Any], object] = bool,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """Answers by key, piece by piece; arguments as of `ask`."""
        left = list(asked)
        while left:
            begin, keys = time.monotonic(), left[: self._rows]
            answers, left = dict(zip(keys, ask([asked[key] for key in keys]), strict=True)), left[len(keys) :]
            if worked := sum(map(bool, map(useful, answers.values()))):
                self._paced(round(worked * PIECE_S / max(time.monotonic() - begin, 1e-6)))
            yield answers

    def _paced(self, rows: int) -> None:
        self._rows = max(1, rows if rows < self._batch else rows - rows % self._batch)


class Remembered:
    """Answers of a stage that is not cut into parts, each asked for once: every piece is kept until `forget`."""

    def __init__(self, work_uri: str, name: str) -> None:
        """Read what a killed run has left under this name."""
        self._answers, self._name = Answers(work_uri), name
        self._known = self._answers.kept(name)

    def __call__(
        self, asked: Mapping[str, AskedT], ask: Callable[[Sequence[AskedT]], Sequence[Any]]
    ) -> Mapping[str, Any]:
        """An answer of every key; `ask` gives one for each question, in order."""
        fresh = {key: item for key, item in asked.items() if key not in self._known}
        for answers in self._answers.pieces(fresh, ask):
            self._answers.keep(self._name, answers)
            self._known |= answers
        return self._known


def signs(work_uri: str) -> Callable[[], object]:
    """What changes while a part is worked on: the answers that are kept."""
    return partial(storage.list_files, storage.join(work_uri, ANSWERS))


def forget(work_uri: str) -> None:
    """Remove what is kept, once every part is written."""
    storage.remove(storage.join(work_uri, ANSWERS))
