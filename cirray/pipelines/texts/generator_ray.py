"""The generator's two loops on Ray Train's workers. Each worker of a loop loads the frozen language model for itself.

Only trained weights are passed between loops and back: Q-Former, projection, and adapters if any.
"""

import io
import json
from pathlib import Path
from typing import Any, Literal

import torch

from cirray.core import storage
from cirray.core.artifacts import Stage
from cirray.core.config import validate
from cirray.core.environ import enter_folder
from cirray.core.errors import ConfigError
from cirray.data.benchmark import select_labels
from cirray.generators.trainable import TrainableGenerator
from cirray.pipelines.data.datasets import read_usable
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator_inputs import alignment_task, build_generator, read_features
from cirray.pipelines.texts.heldout import packed
from cirray.pipelines.training.inputs import MODEL
from cirray.pipelines.training.workers import clear, fit_of, fit_on_ray, train_share, worker_device
from cirray.training.callbacks import HISTORY, HistoryFile
from cirray.training.generation import TUNED, AlignmentTask, GeneratorTask
from cirray.training.state import Row

Name = Literal["alignment", "answers"]
DONE = "done.json"


def train_on_workers(
    run: GeneratorRun, stage: Stage, model: TrainableGenerator, name: Name, title: str, folder: Path
) -> list[Row]:
    """Train on Ray's workers, starting from `model`'s weights, which are then the trained ones.

    Returns: The history.

    Raises ConfigError when the cluster cannot hold the workers, or training failed more often than allowed.
    """
    assert run.ray is not None
    loop = run.alignment_training if name == "alignment" else run.training
    settings = {"run": run.to_dict(), "loop": name}
    fit = fit_of(stage, work, settings, run.ray, loop, title, [HistoryFile(folder / HISTORY)], name)
    if not (folder / DONE).is_file():
        storage.write_bytes(fit.start, packed(model))
        history, _ = fit_on_ray(fit, folder)
        (folder / DONE).write_text(json.dumps(history))
    clear(fit)
    model.load_tuned(torch.load(folder / MODEL / TUNED, map_location="cpu", weights_only=True))
    return list(json.loads((folder / DONE).read_text()))


def work(settings: dict[str, Any]) -> None:
    """The worker's function.

    Args:
        settings: `run` (plain values of a `GeneratorRun`), `loop` (which one), `start` (URI of its start weights),
            `status_file` (URI of the file that the driver looks at) and `folder` (where the driver works).
    """
    enter_folder(settings["folder"])
    run = validate(GeneratorRun, settings["run"])
    assert run.ray is not None
    device = worker_device(run.ray)
    labelled = select_labels(dataset := read_usable(run.data, run.features), run.labels)
    features = read_features(run, dataset, labelled)
    model = build_generator(run, str(device))
    start = torch.load(io.BytesIO(storage.read_bytes(settings["start"])), map_location="cpu", weights_only=True)
    model.load_tuned(start)
    task: AlignmentTask | GeneratorTask | None
    if settings["loop"] == "alignment":
        task, _ = alignment_task(run, model, features, labelled)
    else:
        task = GeneratorTask(model, labelled.train, features, run.training)
    if task is None:
        raise ConfigError(f"A worker finds no captions to align with in {run.data.format!r}. Give every node the data.")
    loop = run.alignment_training if settings["loop"] == "alignment" else run.training
    train_share(task, loop, device, settings["status_file"])
