"""Ray Train: workers run the training loop and report checkpoints; the driver follows them.

A `Fit` describes the training of a retriever or a generator: `train_share` is a worker's part, `fit_on_ray` the
driver's.

Ray's `report` is a collective, so every rank reports at the same steps; each writes its share of a checkpoint into a
folder of its own and Ray merges them in the run's storage. A restarted worker, or the same run started again after the
driver died, goes on from the last checkpoint that was committed there.
"""

import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from cirray.core import storage
from cirray.core.artifacts import Stage
from cirray.core.environ import train_settings, worker_environment, working_folder
from cirray.core.errors import ConfigError, own_error
from cirray.core.interrupts import own_handlers
from cirray.core.log import get_logger
from cirray.pipelines.cluster.config import RayTrainConfig
from cirray.pipelines.cluster.resources import ClusterInfo, cluster
from cirray.pipelines.training.failures import NoSecondTry, RoomFreed
from cirray.pipelines.training.inputs import MODEL
from cirray.pipelines.training.job import Clock, export
from cirray.pipelines.training.status import StatusFile, followed
from cirray.training.callbacks import CheckpointClock
from cirray.training.checkpoint import LOOP, write_checkpoint
from cirray.training.config import LoopConfig
from cirray.training.engine import find_engine
from cirray.training.loop import Callback, train
from cirray.training.state import LoopState, Row
from cirray.training.task import Task
from cirray.types import stable_id

_LOGGER = get_logger(__name__)

STORAGE, RATE = "ray", "samples_per_second"


@dataclass(frozen=True)
class Fit:
    """One training on Ray's workers.

    Attributes:
        work: the worker's function; it gets `settings` with the URIs `status_file` and `start` and the driver's
            `folder`.
        settings: plain values.
        ray: cluster, workers, failures.
        loop: steps and checkpoints.
        name: the same for every start of a run, different for runs that share a storage folder.
        place: URI where checkpoints and the status file are.
        title: title of the progress bar.
        writers: callbacks that the driver calls with the rows.
    """

    work: Callable[[dict[str, Any]], None]
    settings: dict[str, Any]
    ray: RayTrainConfig
    loop: LoopConfig
    name: str
    place: str
    title: str
    writers: tuple[Callback, ...] = ()

    @property
    def status_file(self) -> str:
        """URI of the status file."""
        return storage.join(self.place, f"{self.name}.json")

    @property
    def start(self) -> str:
        """URI of the weights that workers start from, if the driver gives some."""
        return storage.join(self.place, f"{self.name}.start.pt")


def fit_of(
    stage: Stage, work: Callable[[dict[str, Any]], None], settings: dict[str, Any], ray: RayTrainConfig,
    loop: LoopConfig, title: str, writers: Sequence[Callback], what: str = "train",
) -> Fit:  # fmt: skip
    """A stage's training; what an earlier run of another stage left in its place is dropped.

    Checkpoints are kept where `ray.storage` says, else beside the output. Every start of one run has the same name, and
    runs that share a storage folder have different ones.
    """
    place = ray.storage or storage.join(stage.work_uri, STORAGE)
    fit = Fit(work, settings, ray, loop, f"{what}-{stable_id(stage.uri)[:8]}", place, title, tuple(writers))
    if stage.fresh:
        clear(fit)
    return fit


def fit_on_ray(fit: Fit, folder: Path, reports: Sequence[Any] = ()) -> tuple[list[Row], float]:
    """Train on Ray's workers, or go on from the last checkpoint of an earlier start; `folder/model` is the result.

    Returns: The history, and samples per second.

    Raises ConfigError when the cluster cannot hold the workers, or training failed more often than allowed.
    """
    with cluster(fit.ray) as info:
        check_room(fit.ray, info)
        train_settings(fit.ray.poll_s, fit.ray.start_timeout_s, info.nodes == 1)
        result = _fit(fit, reports, info.own)
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as name:
        shutil.copytree(Path(name) / MODEL, folder / MODEL, dirs_exist_ok=True)
        history = list(json.loads((Path(name) / LOOP).read_text())["history"])
    return history, float((result.metrics or {}).get(RATE, 0.0))


def check_room(config: RayTrainConfig, info: ClusterInfo) -> None:
    """Refuse workers that this cluster can never hold; Ray would wait for ever.

    Raises ConfigError naming the needed and the available resources.
    """
    if config.autoscaling:
        return
    wanted = {"CPU": config.num_workers * config.cpus_per_worker, "GPU": config.num_workers * float(config.use_gpu)}
    there = {"CPU": info.cpus, "GPU": info.gpus}
    for name, amount in wanted.items():
        if amount > there[name]:
            raise ConfigError(
                f"{config.num_workers} training workers need {amount:g} {name}s, the cluster has {there[name]:g}. "
                f"Lower ray.num_workers{' or ray.cpus_per_worker' if name == 'CPU' else ', set ray.use_gpu=false'}, "
                "name a larger cluster, or set ray.autoscaling=true if it grows."
            )


def worker_device(config: RayTrainConfig) -> torch.device:
    """Device of the calling worker."""
    return get_device() if config.use_gpu else torch.device("cpu")


def train_share(
    task: Task, loop: LoopConfig, device: torch.device, status_file: str, measures: Sequence[Callback] = (),
    validation_every: int | None = None,
) -> None:  # fmt: skip
    """The calling worker's part of a training; goes on from the last checkpoint that was reported.

    The driver looks at `status_file`. `measures` add figures to the history, or keep weights by them; rows are reported
    for them every `validation_every` steps.
    """
    context, clock = ray.train.get_context(), Clock()
    rank, world = context.get_world_rank(), context.get_world_size()
    report = RayReport(validation_every, clock)
    hooks = [clock, *measures, StatusFile(status_file), report]
    checkpoint = ray.train.get_checkpoint()
    with ExitStack() as stack:
        resume = Path(stack.enter_context(checkpoint.as_directory())) if checkpoint else None
        train(task, loop, find_engine(loop.engine), hooks, rank, world, resume, device)


class RayReport(Callback):
    """Reports a checkpoint on schedule and at the end (the last one also holds the model), and every validation."""

    def __init__(self, validation_every: int | None, clock: Clock) -> None:
        """Take the schedule of the validation."""
        self._clock, self._validation, self._checkpoints = clock, validation_every, CheckpointClock()

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """All ranks report at the same steps."""
        figures = {**(row or {"step": float(state.step)}), RATE: self._clock.rate}
        if self._checkpoints.due(state):
            with self._checkpoints.writing(), tempfile.TemporaryDirectory(prefix="cirray-") as name:
                ray.train.report(figures, checkpoint=_share(state, Path(name)))
        elif self._validation and state.step % self._validation == 0:
            ray.train.report(figures)


def _share(state: LoopState, folder: Path) -> ray.train.Checkpoint | None:
    """The calling rank's part of a checkpoint, if it has one."""
    write_checkpoint(folder, state)
    if state.finished:
        export(state, folder / MODEL)
    return ray.train.Checkpoint.from_directory(folder) if any(folder.iterdir()) else None


def clear(fit: Fit) -> None:
    """Drop the finished run's checkpoints."""
    if not fit.ray.storage:
        storage.remove(fit.place)
        return
    storage.remove(storage.join(fit.place, fit.name))
    for uri in (fit.status_file, fit.start):
        storage.remove(uri)


def _fit(fit: Fit, reports: Sequence[Any], own: bool) -> ray.train.Result:
    filesystem, path = storage.resolve(fit.place)
    callbacks: list[Any] = [*reports, NoSecondTry()]
    settings = ray.train.RunConfig(  # type: ignore[call-arg]
        name=fit.name, storage_path=path, storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=fit.ray.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=fit.loop.keep_checkpoints),
        callbacks=callbacks, worker_runtime_env={"env_vars": worker_environment()},
    )  # fmt: skip
    scaling = ray.train.ScalingConfig(
        num_workers=fit.ray.num_workers, use_gpu=fit.ray.use_gpu,
        resources_per_worker={"CPU": fit.ray.cpus_per_worker, **({"GPU": 1} if fit.ray.use_gpu else {})},
    )  # fmt: skip
    backend = TorchConfig(backend="nccl" if fit.ray.use_gpu else "gloo")
    uris = {"status_file": fit.status_file, "start": fit.start}
    # bound, not `train_loop_config`: Ray Train's controller would read that one, and load torch and models for it
    work = partial(fit.work, {**fit.settings, **uris, "folder": working_folder()})
    with followed(fit.status_file, fit.title, fit.loop.steps, fit.writers), own_handlers() as asked:
        for left in reversed(range(fit.ray.max_failures + 1)):
            trainer = (_OwnTrainer if own else _Trainer)(
                work, torch_config=backend, scaling_config=scaling, run_config=settings
            )
            try:
                return trainer.fit()
            except KeyboardInterrupt:
                _abort(asked)
                raise
            except ray.train.TrainingFailedError as error:
                if not left or not _died_at_start(error):
                    raise _reason(error) from error
                _LOGGER.warning("A worker died while the workers were starting; they are started again.")
    raise AssertionError("the last try returns or raises")


def _died_at_start(error: Exception) -> bool:
    """Whether a worker died before the loop ran: Ray Train gives up then, whatever its failures are allowed to be."""
    return isinstance(getattr(error, "controller_failure", None), ray.exceptions.RayActorError)


class _Trainer(TorchTrainer):
    """Without the process that would hand out Ray Data's sets to every group of workers: a run here has none. With
    `RoomFreed`, the first to hear of a group.
    """

    unwanted: tuple[str, ...] = ("DatasetsCallback",)

    def _create_default_callbacks(self) -> list[Any]:
        made = super()._create_default_callbacks()  # type: ignore[misc]
        return [RoomFreed(), *(item for item in made if type(item).__name__ not in self.unwanted)]


class _OwnTrainer(_Trainer):
    """Without the process that would free the workers' CPUs where the controller is killed: the cluster ends, too."""

    unwanted = (*_Trainer.unwanted, "PlacementGroupCleanerCallback")


def _abort(asked: dict[int, Any]) -> None:
    """Stop the workers, also on a permanent cluster, by Ray Train's handler for Ctrl-C."""
    try:
        asked.get(signal.SIGINT, lambda *_: None)(signal.SIGINT, None)
    except (SystemExit, ray.exceptions.RayError):
        pass  # how it reports that they are stopped


def _reason(error: Exception) -> Exception:
    """The package's own error that made a worker fail, or a sentence about the failure."""
    own = own_error(*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None))
    if own is not None:
        return own
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ConfigError(f"Training failed more often than ray.max_failures allows; the last reason: {lines[-1].strip()}")
