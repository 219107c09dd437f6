"""A retriever's training on Ray Train's workers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cirray.core.artifacts import Stage
from cirray.core.environ import enter_folder
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import TrainInputs
from cirray.pipelines.training.job import build_job, title_of
from cirray.pipelines.training.workers import clear, fit_of, fit_on_ray, train_share, worker_device
from cirray.training.callbacks import HISTORY, HistoryFile
from cirray.training.state import Row
from cirray.training.trackers import open_trackers


def train_on_ray(
    run: TrainRun, stage: Stage, inputs: TrainInputs, reports: Sequence[Any] = ()
) -> tuple[list[Row], float]:
    """Train a retriever on Ray's workers, which get the rows and need not read them again, and fetch the model.

    `reports` are callbacks of Ray Train's controller.

    Returns: The history, and samples per second.

    Raises ConfigError when the cluster cannot hold the workers, or training failed more often than allowed.
    """
    trackers = open_trackers(run.trackers, stage.local, stage.uri, run.to_dict())
    writers = (HistoryFile(stage.local / HISTORY), *trackers)
    settings = {"run": run, "inputs": replace(inputs, verified=True)}
    fit = fit_of(stage, work, settings, run.ray, run.training, title_of(run), writers)
    history, rate = fit_on_ray(fit, stage.local, reports)
    clear(fit)
    return history, rate


def work(settings: dict[str, Any]) -> None:
    """The worker's function.

    Args:
        settings: `run`, `inputs` (its rows), `status_file` (URI of the file that the driver reads) and `folder` (where
            the driver works).
    """
    enter_folder(settings["folder"])
    run: TrainRun = settings["run"]
    device = worker_device(run.ray)
    job = build_job(run, settings["inputs"], device)
    train_share(job.task, run.training, device, settings["status_file"], job.measures, run.validation.every)
