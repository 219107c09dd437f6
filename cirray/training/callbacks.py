"""Callbacks of the loop: history file, checkpoints, progress; and a training with all of them. Writers act
on rank 0 only.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from cirray.core.progress import Advance, progress
from cirray.training.checkpoint import latest_checkpoint, save_step
from cirray.training.config import LoopConfig
from cirray.training.engine import find_engine
from cirray.training.gather import build_gather
from cirray.training.loop import Callback, train
from cirray.training.state import LoopState, Row
from cirray.training.task import Task

HISTORY, CHECKPOINTS = "history.jsonl", "checkpoints"
_WRITING = 20.0
"""Least time between checkpoints, as a multiple of what the last one took."""


@dataclass
class HistoryFile(Callback):
    """`history.jsonl`, one row per logged step; a resumed run rewrites the rows it starts from."""

    path: Path

    def on_start(self, state: LoopState) -> None:
        """Write the rows of the steps already done."""
        if state.rank == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(row) + "\n" for row in state.history))

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Append the new row."""
        if row is not None and state.rank == 0:
            with open(self.path, "a") as stream:
                stream.write(json.dumps(row) + "\n")


class CheckpointClock:
    """Says after which steps a checkpoint is written: by steps, by the minutes of rank 0's clock, and the last one."""

    def __init__(self) -> None:
        """Start the clock."""
        self._last, self._took = time.monotonic(), 0.0

    def due(self, state: LoopState) -> bool:
        """Whether one is due; the same on every rank, all of which ask."""
        every, minutes = state.config.checkpoint_every, state.config.checkpoint_minutes
        if state.finished or (every and state.step % every == 0):
            return True
        if minutes is None:
            return False
        late = time.monotonic() - self._last >= max(60 * minutes, _WRITING * self._took)
        if state.world == 1:
            return late
        own = torch.tensor(float(late and state.rank == 0), device=state.engine.device)
        return bool(build_gather(state.world).total(own))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Around writing one: the clock starts anew, and a slow disk is asked less often."""
        begin = time.monotonic()
        yield
        self._last = time.monotonic()
        self._took = self._last - begin


@dataclass
class Checkpoints(Callback):
    """A resumable checkpoint, in a folder that all ranks share, whenever one is due and at the end."""

    root: Path

    def on_start(self, state: LoopState) -> None:
        """Time counts from here."""
        self._clock = CheckpointClock()

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Save on schedule."""
        if self._clock.due(state):
            with self._clock.writing():
                save_step(self.root, state, state.config.keep_checkpoints)


@dataclass
class ShowProgress(Callback):
    """Moves a progress bar (rank 0 shows it); its note is the latest loss."""

    advance: Advance

    def on_start(self, state: LoopState) -> None:
        """Move over the steps already done."""
        if state.rank == 0 and state.step:
            self.advance(state.step, "finished before", earlier=True)

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """One step further."""
        if state.rank == 0:
            self.advance(1, f"loss {row['loss']:.3f}" if row else "")


def train_stage(
    task: Task, config: LoopConfig, folder: Path, title: str, measures: Sequence[Callback] = (),
    more: Sequence[Callback] = (), device: str | torch.device | None = None,
) -> list[Row]:  # fmt: skip
    """Train a task in this process with progress, history and checkpoints below `folder`; resumes from these.

    Figures of `measures`, which are called first, are in the history; `more` are called last.

    Returns: The history.
    """
    root = folder / CHECKPOINTS
    with progress(title, config.steps, "steps") as advance:
        callbacks = [*measures, HistoryFile(folder / HISTORY), ShowProgress(advance), Checkpoints(root), *more]
        engine, resume = find_engine(config.engine), latest_checkpoint(root)
        return train(task, config, engine, callbacks, resume=resume, device=device)
