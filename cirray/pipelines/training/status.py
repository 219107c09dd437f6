"""Where a training on workers is: a small file that rank 0 writes and the driver follows."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from cirray.core import storage
from cirray.core.log import get_logger
from cirray.core.progress import Advance, progress
from cirray.training.loop import Callback
from cirray.training.state import LoopState, Row

_PULL_S = 0.5


class StatusFile(Callback):
    """Writes the run's progress into a small file in its storage, for the driver."""

    def __init__(self, uri: str) -> None:
        """Take the file; the starts of earlier workers are kept."""
        self._uri, self._last, self._starts = uri, 0.0, list[int]()

    def on_start(self, state: LoopState) -> None:
        """Write the step of this start."""
        if state.rank == 0:
            self._starts = [*read_status(self._uri)["starts"], state.step]
            self._write(state)

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Write the progress, at most every few seconds."""
        if state.rank == 0 and (state.finished or time.monotonic() - self._last > _PULL_S):
            self._write(state)

    def _write(self, state: LoopState) -> None:
        self._last = time.monotonic()
        news = {"step": state.step, "starts": self._starts, "rows": state.history}
        storage.write_bytes(self._uri, json.dumps(news).encode())


def read_status(uri: str) -> dict[str, Any]:
    """`step`, `starts` and `rows` of a run; empty when there is no file yet."""
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else {"step": 0, "starts": [], "rows": []}


@contextmanager
def followed(uri: str, title: str, steps: int, writers: Sequence[Callback] = ()) -> Iterator[None]:
    """Show progress, and call the driver's writers, while workers train inside the block."""
    ended = threading.Event()
    with progress(title, steps, "steps") as advance:
        follower = _Follower(uri, advance, writers)
        thread = threading.Thread(target=follower.run, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=30)


class _Follower:
    """Reads the status file. Rows of steps that a restarted worker repeats are taken once."""

    def __init__(self, uri: str, advance: Advance, writers: Sequence[Callback]) -> None:
        self._uri, self._advance, self._writers = uri, advance, writers
        self._before = self._told = len(read_status(uri)["starts"])
        self._shown, self._row_step = 0, 0.0

    def run(self, ended: threading.Event) -> None:
        """Follow the status file until `ended` is set, then once more."""
        self._each("on_start", SimpleNamespace(rank=0, step=0, history=[]))
        last = False
        while not last:
            last = ended.wait(_PULL_S)
            news = read_status(self._uri)
            if len(news["starts"]) > self._before:
                self._tell(news["starts"])
                self._take(news["step"], news["rows"])
        self._each("on_end", SimpleNamespace(rank=0))

    def _tell(self, starts: list[int]) -> None:
        if self._told == self._before and (first := starts[self._before]):
            self._advance(first, "finished before", earlier=True)
            self._shown = first
        for number in range(self._told, len(starts)):
            lost = number > self._before
            if lost or starts[number]:
                what = "a worker was lost; training goes on" if lost else "training goes on"
                get_logger(__name__).info("%s from step %d", what, starts[number])
        self._told = len(starts)

    def _take(self, step: int, rows: list[Row]) -> None:
        for row in rows:
            if row["step"] > self._row_step:
                self._row_step = row["step"]
                self._each("on_step", SimpleNamespace(rank=0, step=int(row["step"])), row)
        if step > self._shown:
            self._advance(step - self._shown, f"loss {rows[-1]['loss']:.3f}" if rows else "")
            self._shown = step

    def _each(self, hook: str, *arguments: Any) -> None:
        for writer in self._writers:
            getattr(writer, hook)(*arguments)
