"""Progress of long work: a rich bar on a terminal, a line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from cirray.core.log import get_logger

Sink = Callable[[str, int, int | None, str], None]
"""Receives (title, units done, total or None, note) in place of the terminal."""

_SINK: ContextVar[Sink | None] = ContextVar("cirray_progress_sink", default=None)


class Advance(Protocol):
    """What long work calls: `advance(n)` after n more units, with an optional note such as the current loss."""

    def __call__(self, amount: int = 1, note: str = "") -> None:
        """Move the bar."""


def silent(amount: int = 1, note: str = "") -> None:
    """Progress for callers that want none."""


@contextmanager
def progress(title: str, total: int | None, unit: str = "it", every_s: float = 10.0) -> Iterator[Advance]:
    """Show the progress of one piece of work.

    Args:
        title: what is being done.
        total: number of units, or None when unknown.
        unit: name of one unit.
        every_s: seconds between lines when standard error is not a terminal.
    """
    sink = _SINK.get()
    if sink is not None:
        yield from _report(sink, title, total)
        return
    if sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
        return
    yield from _lines(title, total, unit, every_s)


@contextmanager
def redirected(sink: Sink) -> Iterator[None]:
    """Send the progress of the calling thread's work to `sink` (a process that has no terminal, such as a Ray task)."""
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


def _report(sink: Sink, title: str, total: int | None, every_s: float = 0.5) -> Iterator[Advance]:
    state = {"done": 0, "last": 0.0}

    def advance(amount: int = 1, note: str = "") -> None:
        state["done"] += amount
        now = time.monotonic()
        if now - state["last"] >= every_s:
            state["last"] = now
            sink(title, int(state["done"]), total, note)

    sink(title, 0, total, "")
    yield advance
    sink(title, int(state["done"]), total, "done")


def _lines(title: str, total: int | None, unit: str, every_s: float) -> Iterator[Advance]:
    logger, state, begin = get_logger("progress"), {"done": 0, "last": time.monotonic()}, time.monotonic()

    def advance(amount: int = 1, note: str = "") -> None:
        state["done"] += amount
        now = time.monotonic()
        if now - state["last"] >= every_s:
            state["last"] = now
            logger.info(_line(title, int(state["done"]), total, unit, now - begin, note))

    yield advance
    logger.info(_line(title, int(state["done"]), total, unit, time.monotonic() - begin, "done"))


def _line(title: str, done: int, total: int | None, unit: str, seconds: float, note: str) -> str:
    share = f"{done}/{total}" if total else str(done)
    rate = done / seconds if seconds > 0 else 0.0
    return f"{title}: {share} {unit} in {seconds:.1f} s ({rate:.0f}/s){' · ' + note if note else ''}"


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, note="")

        def advance(amount: int = 1, note: str = "") -> None:
            bars.update(task, advance=amount)
            if note:
                bars.update(task, note=note)

        yield advance
