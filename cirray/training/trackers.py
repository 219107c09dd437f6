"""Trackers: programs that show a training's figures while it runs, each a callback under a name of its own.

Rank 0 writes. Where figures go is set as each program sets it (WANDB_PROJECT, MLFLOW_TRACKING_URI).
"""

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cirray.core.extras import require
from cirray.training.config import TRACKERS
from cirray.training.loop import Callback
from cirray.training.state import LoopState, Row
from cirray.types import stable_id


class Tracker(Callback):
    """Writes the rows of rank 0."""

    library: str
    """Module that is needed."""

    def __init__(self, folder: Path, out: str, config: Mapping[str, Any]) -> None:
        """Take the training: the folder it works in, the URI of its artifact, and its settings as plain values."""
        self.folder, self.config, self.id = folder, dict(config), stable_id("tracked", out)
        self.name = out.rstrip("/").rpartition("/")[2]

    @classmethod
    def check(cls) -> None:
        """Look for the library. Raises ConfigError: when it is not installed, with the line that installs it."""
        require(cls.library, "", f"trackers=[{cls.library}]")

    def on_start(self, state: LoopState) -> None:
        """Open the run, or go on with it."""
        if state.rank == 0:
            self._open(state.step)

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Write a row's figures."""
        if row is not None and state.rank == 0:
            self._put(state.step, {f"train/{name}": value for name, value in row.items() if name != "step"})

    def on_end(self, state: LoopState) -> None:
        """Close the run."""
        if state.rank == 0:
            self._close()

    def _open(self, step: int) -> None:
        raise NotImplementedError

    def _put(self, step: int, figures: Row) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


@TRACKERS.register("tensorboard")
class TensorBoard(Tracker):
    """Scalars in the folder `tensorboard`; of a resumed run, events after its step are superseded."""

    library = "tensorboardX"

    def _open(self, step: int) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step or None)

    def _put(self, step: int, figures: Row) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def _close(self) -> None:
        self._writer.close()


@TRACKERS.register("wandb")
class Wandb(Tracker):
    """A run of Weights & Biases, the same one when the training is resumed."""

    library = "wandb"

    def _open(self, step: int) -> None:
        start: Any = importlib.import_module("wandb").init
        self._run = start(
            id=self.id, resume="allow", name=self.name, dir=str(self.folder), config=self.config,
        )  # fmt: skip

    def _put(self, step: int, figures: Row) -> None:
        self._run.log(figures, step=step)

    def _close(self) -> None:
        self._run.finish()


@TRACKERS.register("mlflow")
class MLflow(Tracker):
    """A run of MLflow, the same one when the training is resumed; it takes no `@` in a name, which is `_at_` there."""

    library = "mlflow"

    def _open(self, step: int) -> None:
        self._mlflow: Any = importlib.import_module("mlflow")
        place = self.folder / "mlflow.txt"
        if place.is_file():
            self._mlflow.start_run(run_id=place.read_text())
            return
        run = self._mlflow.start_run(run_name=self.name)
        place.write_text(run.info.run_id)
        self._mlflow.log_dict(self.config, "config.json")

    def _put(self, step: int, figures: Row) -> None:
        self._mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in figures.items()}, step=step)

    def _close(self) -> None:
        self._mlflow.end_run()


def check_trackers(names: Sequence[str]) -> None:
    """Look for the trackers' libraries. Raises ConfigError: as `Tracker.check`."""
    for name in names:
        TRACKERS.get(name).check()


def open_trackers(names: Sequence[str], folder: Path, out: str, config: Mapping[str, Any]) -> list[Callback]:
    """The named trackers of a training."""
    return [TRACKERS.get(name)(folder, out, config) for name in names]
