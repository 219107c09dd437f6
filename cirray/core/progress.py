"""Progress of long work: a bar on a terminal and in a notebook, a line every few seconds elsewhere."""

import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol

from cirray.core.log import get_logger

Sink = Callable[[str, int, int | None, str], None]
"""Receives (title, units done, total or None, note) in place of the terminal."""

_SLOW_S = 1.0
_SINK: ContextVar[Sink | None] = ContextVar("cirray_progress_sink", default=None)


class Advance(Protocol):
    """What long work calls: `advance(n)` after n more units, with an optional note such as the current loss.

    `earlier` marks units that an earlier run finished: they count as done, not towards the speed.
    """

    def __call__(self, amount: int = 1, note: str = "", earlier: bool = False) -> None:
        """Move the bar."""


@dataclass
class Pace:
    """Progress of one piece of work, its speed, and when it will end at that speed."""

    total: int | None
    unit: str = "it"
    done: int = 0
    earlier: int = 0
    begin: float = field(default_factory=lambda: time.monotonic())

    def move(self, amount: int, earlier: bool = False) -> None:
        """Count units; `earlier` ones were finished by an earlier run."""
        self.done += amount
        self.earlier += amount if earlier else 0

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    def speed(self) -> str:
        """Units per second, or seconds per unit where those are more; empty before the first one."""
        made = self.done - self.earlier
        if made <= 0:
            return ""
        each = max(self.seconds, 1e-9) / made
        return f"{each:.3g} s/{_singular(self.unit)}" if each > 1 else f"{1 / each:.3g} {self.unit}/s"

    def outlook(self) -> str:
        """Speed, time left and expected end, as far as they are known."""
        made = self.done - self.earlier
        if made <= 0 or not self.total or self.done >= self.total:
            return self.speed()
        left = self.seconds / made * (self.total - self.done)
        form = "%H:%M" if left < _HALF_A_DAY else "%a %H:%M" if left < 14 * _HALF_A_DAY else "%Y-%m-%d"
        return f"{self.speed()}, {_duration(left)} left, ends {time.strftime(form, time.localtime(time.time() + left))}"

    def line(self, title: str, note: str) -> str:
        """All of it as one line."""
        share = f"{self.done}/{self.total}" if self.total else str(self.done)
        outlook = self.outlook()
        told = f"{title}: {share} {self.unit} in {self.seconds:.1f} s{f' ({outlook})' if outlook else ''}"
        return f"{told} · {note}" if note else told


_HALF_A_DAY = 12 * 3600


def _duration(seconds: float) -> str:
    for limit, size, name in ((90, 1, "s"), (90 * 60, 60, "min"), (48 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds / 86400:.0f} days"


def _singular(unit: str) -> str:
    """Singular of the unit: `step` of `steps`."""
    if " " in unit:
        return "each"
    return f"{unit.removesuffix('ies')}y" if unit.endswith("ies") else unit.removesuffix("s")


def silent(amount: int = 1, note: str = "", earlier: bool = False) -> None:
    """Progress for callers that want none."""


@contextmanager
def progress(title: str, total: int | None, unit: str = "it", every_s: float = 10.0) -> Iterator[Advance]:
    """Show the progress of one piece of work; where standard error is no terminal, a line every `every_s` seconds."""
    sink = _SINK.get() or _notebook()
    if sink is not None:
        yield from _report(sink, title, Pace(total, unit))
        return
    if sys.stderr.isatty():
        with _bar(title, Pace(total, unit)) as advance:
            yield advance
        return
    yield from _lines(title, Pace(total, unit), every_s)


def _notebook() -> Sink | None:
    """A bar below the cell that runs, in a notebook; None elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if not hasattr(shell, "kernel"):
        return None
    from IPython.display import HTML, display

    shown = display(HTML(""), display_id=True)

    def show(title: str, done: int, total: int | None, note: str) -> None:
        bar = f"<progress value='{done}' max='{total}'></progress> " if total else ""
        count = f"{done:,} of {total:,}" if total else f"{done:,}"
        shown.update(HTML(f"{bar}{html.escape(f'{title}: {count} {note}')}"))

    return show


@contextmanager
def redirected(sink: Sink) -> Iterator[None]:
    """Send the progress of the calling thread's work to `sink` (a process that has no terminal, such as a Ray task)."""
    token = _SINK.set(sink)
    try:
        yield
    finally:
        _SINK.reset(token)


def _report(sink: Sink, title: str, pace: Pace, every_s: float = 0.5) -> Iterator[Advance]:
    last = 0.0

    def advance(amount: int = 1, note: str = "", earlier: bool = False) -> None:
        nonlocal last
        pace.move(amount, earlier)
        if time.monotonic() - last >= every_s:
            last = time.monotonic()
            sink(title, pace.done, pace.total, " · ".join(filter(None, [pace.outlook(), note])))

    sink(title, 0, pace.total, "")
    yield advance
    sink(title, pace.done, pace.total, "done")


def _lines(title: str, pace: Pace, every_s: float) -> Iterator[Advance]:
    """A line at the end, every few seconds, and after the first unit if it took long."""
    logger, last = get_logger("progress"), pace.begin

    def advance(amount: int = 1, note: str = "", earlier: bool = False) -> None:
        nonlocal last
        first = not earlier and pace.done == pace.earlier
        pace.move(amount, earlier)
        if pace.done != pace.total and time.monotonic() - last >= (min(_SLOW_S, every_s) if first else every_s):
            last = time.monotonic()
            logger.info(pace.line(title, note))

    yield advance
    logger.info(pace.line(title, "done"))


@contextmanager
def _bar(title: str, pace: Pace) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<22}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[outlook]}"), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=pace.total, note="", outlook="")

        def advance(amount: int = 1, note: str = "", earlier: bool = False) -> None:
            pace.move(amount, earlier)
            bars.update(task, completed=pace.done, outlook=pace.outlook())
            if note:
                bars.update(task, note=note)

        yield advance
