"""Ray Train: workers that run the one training loop, report checkpoints, and are followed from the driver.

Ray's `report` is a collective, so every rank reports at the same steps; each writes its share of a checkpoint into a
folder of its own and Ray merges them in the run's storage. A restarted worker, or the same run started again after the
driver died, goes on from the last checkpoint that was committed there.
"""

import json
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cirray.core import storage
from cirray.core.artifacts import Stage
from cirray.core.config import validate
from cirray.core.environ import train_settings, worker_environment
from cirray.core.errors import CirrayError, ConfigError
from cirray.core.progress import progress
from cirray.pipelines.config import TrainRun
from cirray.pipelines.resources import ClusterInfo, cluster
from cirray.pipelines.train_inputs import MODEL, read_inputs
from cirray.pipelines.train_job import build_job, engine_on, export
from cirray.training.callbacks import HistoryFile, TensorBoard
from cirray.training.checkpoint import LOOP, write_checkpoint
from cirray.training.loop import Callback, train
from cirray.training.state import LoopState, Row

NAME, STORAGE = "train", "ray"
_PULL_S = 0.5


def train_on_ray(run: TrainRun, stage: Stage) -> list[Row]:
    """Train on Ray's workers and bring the model home.

    Returns:
        The history.

    Raises:
        ConfigError: when the cluster cannot hold the workers, or training failed more often than allowed.
    """
    place = run.ray.storage or storage.join(stage.work_uri, STORAGE)
    train_settings(run.ray.poll_s, run.ray.start_timeout_s)
    with cluster(run.ray) as info:
        check_room(run, info)
        result = _fit(run, stage, place)
    history = _bring_home(result.checkpoint, stage)
    storage.remove(storage.join(place, NAME))
    return history


def check_room(run: TrainRun, info: ClusterInfo) -> None:
    """Refuse workers that no cluster of this size can ever hold; Ray would wait for ever.

    Raises:
        ConfigError: naming what is wanted and what there is.
    """
    wanted = {"CPU": run.ray.num_workers * run.ray.cpus_per_worker, "GPU": run.ray.num_workers * float(run.ray.use_gpu)}
    there = {"CPU": info.cpus, "GPU": info.gpus}
    for name, amount in wanted.items():
        if amount > there[name]:
            raise ConfigError(
                f"{run.ray.num_workers} training workers need {amount:g} {name}s, the cluster has {there[name]:g}. "
                f"Lower ray.num_workers{' or ray.cpus_per_worker' if name == 'CPU' else ', set ray.use_gpu=false'}, "
                "or name a larger cluster."
            )


def work(settings: dict[str, Any]) -> None:
    """What every worker runs.

    Args:
        settings: `run` (plain values of a `TrainRun`) and `board` (the actor that the driver looks at).
    """
    run = validate(TrainRun, settings["run"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = get_device() if run.ray.use_gpu else torch.device("cpu")
    job = build_job(run, read_inputs(run))
    hooks = [job.validate, PushRows(settings["board"]), RayReport()]
    checkpoint = ray.train.get_checkpoint()
    with ExitStack() as stack:
        resume = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        train(job.task, run.training, engine_on(run, device), hooks, rank, world, resume)


class RayReport(Callback):
    """Reports a checkpoint on schedule and at the end; the last one also holds the model."""

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """All ranks report at the same steps."""
        every = state.config.checkpoint_every
        if not (state.finished or (every and state.step % every == 0)):
            return
        with tempfile.TemporaryDirectory(prefix="cirray-") as name:
            folder = Path(name)
            write_checkpoint(folder, state)
            if state.finished:
                export(state, folder / MODEL)
            share = ray.train.Checkpoint.from_directory(folder) if any(folder.iterdir()) else None
            ray.train.report(dict(row or {"step": float(state.step)}), checkpoint=share)


class PushRows(Callback):
    """Sends progress and history rows to the driver; nothing waits for it."""

    def __init__(self, board: Any) -> None:
        """Take the board actor's handle."""
        self._board = board

    def on_start(self, state: LoopState) -> None:
        """Say where the run stands, with the rows of the steps before."""
        if state.rank == 0:
            self._board.push.remote(state.step, list(state.history))

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Send the new row."""
        if state.rank == 0 and (row is not None or state.step % 10 == 0):
            self._board.push.remote(state.step, [row] if row else [])


class Board:
    """An actor that knows where a run stands: the last step, and the rows that the driver has not read."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._step, self._rows = 0, list[Row]()

    def push(self, step: int, rows: list[Row]) -> None:
        """Called by rank 0."""
        self._step = step
        self._rows += rows

    def pull(self) -> tuple[int, list[Row]]:
        """Step and new rows; called by the driver."""
        rows, self._rows = self._rows, []
        return self._step, rows


def _fit(run: TrainRun, stage: Stage, place: str) -> ray.train.Result:
    board = ray.remote(num_cpus=0)(Board).remote()
    filesystem, path = storage.resolve(place)
    settings = ray.train.RunConfig(  # type: ignore[call-arg]
        name=NAME, storage_path=path, storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=run.ray.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=run.training.keep_checkpoints),
        worker_runtime_env={"env_vars": worker_environment()},
    )  # fmt: skip
    scaling = ray.train.ScalingConfig(
        num_workers=run.ray.num_workers, use_gpu=run.ray.use_gpu,
        resources_per_worker={"CPU": run.ray.cpus_per_worker, **({"GPU": 1} if run.ray.use_gpu else {})},
    )  # fmt: skip
    backend = TorchConfig(backend="nccl" if run.ray.use_gpu else "gloo")
    loop_config = {"run": run.to_dict(), "board": board}
    trainer = TorchTrainer(
        work, train_loop_config=loop_config, torch_config=backend, scaling_config=scaling, run_config=settings
    )
    with _followed(run, stage, board):
        try:
            return trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _reason(error) from error


def _reason(error: Exception) -> Exception:
    """The package's own error that made a worker fail, or a sentence about the failure."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, CirrayError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ConfigError(f"Training failed more often than ray.max_failures allows; the last reason: {lines[-1].strip()}")


@contextmanager
def _followed(run: TrainRun, stage: Stage, board: Any) -> Iterator[None]:
    """Progress, history file and TensorBoard on the driver while the workers train."""
    from cirray.pipelines.train import BOARD, HISTORY, title_of

    ended = threading.Event()
    with progress(title_of(run), run.training.steps, "steps") as advance:
        follower = _Follower(board, advance, [HistoryFile(stage.local / HISTORY), TensorBoard(stage.local / BOARD)])
        thread = threading.Thread(target=follower.run, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=30)


class _Follower:
    """Pulls rows from the board. Rows of steps that a restarted worker repeats are taken once."""

    def __init__(self, board: Any, advance: Any, writers: list[Callback]) -> None:
        self._board, self._advance, self._writers = board, advance, writers
        self._shown, self._row_step = 0, 0.0

    def run(self, ended: threading.Event) -> None:
        self._each("on_start", SimpleNamespace(rank=0, step=0, history=[]))
        last = False
        while not last:
            last = ended.wait(_PULL_S)
            try:
                step, rows = ray.get(self._board.pull.remote(), timeout=30)
            except ray.exceptions.RayError:
                break
            self._take(step, rows)
        self._each("on_end", SimpleNamespace(rank=0))

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


def _bring_home(checkpoint: Any, stage: Stage) -> list[Row]:
    """Copy the model from the last checkpoint beside the vision tower; returns the run's history."""
    with checkpoint.as_directory() as name:
        folder = Path(name)
        shutil.copytree(folder / MODEL, stage.local / MODEL, dirs_exist_ok=True)
        return list(json.loads((folder / LOOP).read_text())["history"])
