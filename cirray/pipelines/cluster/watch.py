"""Progress of a graph of stages: a bar a stage on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cirray.core.log import get_logger
from cirray.pipelines.cluster.schedule import Watch

_EVERY_S = 10.0


@contextmanager
def stage_lines(names: Sequence[str]) -> Iterator[Watch]:
    """Show the progress of several stages that run side by side."""
    if sys.stderr.isatty():
        with _bars(names) as watch:
            yield watch
        return
    yield _plain(names)


def _plain(names: Sequence[str]) -> Watch:
    logger, last, finished = get_logger("story"), dict[str, float](), list[str]()

    def watch(stage: str, title: str, done: int, total: int | None, note: str) -> None:
        if not title:
            if stage not in finished:
                finished.append(stage)
                logger.info("[%d/%d] %s: %s", len(finished), len(names), stage, note)
            return
        now = time.monotonic()
        if now - last.setdefault(stage, now) >= _EVERY_S:
            last[stage] = now
            share = f"{done}/{total}" if total else str(done)
            logger.info("  %s: %s %s %s", stage, title, share, note)

    return watch


@contextmanager
def _bars(names: Sequence[str]) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<20}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as bars:
        tasks = {name: bars.add_task(name, total=None, start=False, visible=False, note="") for name in names}

        def watch(stage: str, title: str, done: int, total: int | None, note: str) -> None:
            task = tasks[stage]
            if bars.tasks[task].finished:
                return
            if not bars.tasks[task].started:
                bars.start_task(task)
            text = f"{title} · {note}" if title and note else title or note
            bars.update(task, visible=True, completed=done, total=total if title else done, note=text)

        yield watch
