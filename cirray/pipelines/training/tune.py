"""Stage 8: a sweep with Ray Tune. Trials fit the machine, bad ones stop early, a killed sweep goes on.

Ray Tune schedules, stops and restores; trials are planned here from the seed. Every trial is `run_train` with its own
artifact, so that a restarted trial goes on from its checkpoint.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.tune
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, is_complete, open_stage, read_manifest
from cirray.core.environ import enter_folder, tune_settings, working_folder
from cirray.core.errors import ConfigError, own_error
from cirray.core.interrupts import own_handlers
from cirray.core.progress import Advance, progress, silent
from cirray.core.unfinished import stage_function
from cirray.evaluation.plots import save_figure, sweep_plot
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import ClusterInfo, cluster
from cirray.pipelines.data.datasets import check_leaks, guard_inputs
from cirray.pipelines.training.config import TuneRun
from cirray.pipelines.training.inputs import input_digests, read_inputs
from cirray.pipelines.training.sweep import (
    Assignment,
    TrialResult,
    best_overrides,
    numeric_paths,
    plan_trials,
    rank,
    render,
    to_json,
    trial_run,
)
from cirray.pipelines.training.train import run_train
from cirray.training.loop import Callback
from cirray.training.state import LoopState, Row

TRIALS, EXPERIMENT = "trials", "tune"
_KEPT = tuple(f"{TRIALS}/*{name}" for name in ("manifest.json", "checkpoints/*", "ray/*/checkpoint_*/*"))
_SLIVER = 0.01
"""CPUs of the driver of a trial with its own workers; Tune refuses a trial without resources."""


@stage_function
def run_tune(run: TuneRun) -> Manifest:
    """Run the sweep; finished trials are not run again.

    Returns: Manifest of kind "sweep": `results.json`, `table.txt`, `best.txt` (overrides of the best trial),
    `sweep.png`, `trials/` (an artifact per trial; a stopped one is a half-written run that can be continued); metrics
    of the best trial, `extra["table"]`.

    Raises ConfigError: an invalid trial, or a sweep that this cluster can never run.
    """
    trials = plan_trials(run)
    for assignment in trials.values():
        trial_run(run, assignment, "unused")
    read = read_inputs(run.base)
    guard = check_leaks(run.base.guard, read.triplets.images(), run.base.allow_leaks, "The training data")
    digests = {**input_digests(run.base, read), **guard_inputs(guard)}
    inputs = {f"base.{name}": digest for name, digest in digests.items()}
    stage = open_stage(run, "sweep", inputs, _KEPT)
    if stage.finished:
        return stage.finished
    with cluster(_cluster_config(run)) as info:
        concurrent = fitting_trials(run, info)
        grid = _run_trials(run, stage, trials, concurrent)
    results = rank([_result(run, stage, trials, item) for item in grid], run.mode)
    return _publish(run, stage, results, guard)


def fitting_trials(run: TuneRun, info: ClusterInfo) -> int:
    """Trials that this cluster runs at a time (0: no limit but an autoscaling cluster's own).

    Raises ConfigError when not even one fits: Tune would wait for ever.
    """
    if run.ray.autoscaling:
        return run.max_concurrent or 0
    wanted, there = trial_resources(run), {"CPU": info.cpus, "GPU": info.gpus}
    for name, amount in wanted.items():
        if amount > there[name]:
            raise ConfigError(
                f"One trial needs {amount:g} {name}s, the cluster has {there[name]:g}: the sweep can never start. "
                f"Lower {_knobs(run, name)}, name a larger cluster, or set ray.autoscaling=true if it grows."
            )
    fit = min(math.floor(there[name] / amount + 1e-6) for name, amount in wanted.items() if amount)
    return min(fit, run.max_concurrent or fit)


def trial_resources(run: TuneRun) -> dict[str, float]:
    """Resources of one trial, including its training workers."""
    if run.trials == "process":
        return {"CPU": run.cpus_per_trial, "GPU": run.gpus_per_trial}
    train = run.base.ray
    return {"CPU": train.num_workers * train.cpus_per_worker + _SLIVER, "GPU": train.num_workers * float(train.use_gpu)}


def run_trial(
    config: Mapping[str, Any], run: TuneRun, trials: Mapping[str, Assignment], place: str, folder: str
) -> None:
    """Tune's function for one trial, whose name `config["trial"]` says.

    `run` remembers what was given of the sweep; artifacts of trials are at `place`, and the driver works in `folder`.
    """
    enter_folder(folder)
    name = str(config["trial"])
    training = trial_run(run, trials[name], storage.join(place, name))
    if is_complete(training.out):
        manifest = read_manifest(training.out, "checkpoint")
    elif run.trials == "process":
        manifest = run_train(training, [TuneReport(run.metric)])
    else:
        from cirray.pipelines.training.tune_workers import ReportOnTheWay, show_cluster_to_cleaners

        show_cluster_to_cleaners()
        manifest = run_train(training, reports=[ReportOnTheWay(run.metric, training.training.steps)])
    last = {name: value for name, value in manifest.metrics.items() if isinstance(value, int | float)}
    if run.metric in last:
        ray.tune.report({**last, "step": training.training.steps, "finished": True})


@dataclass
class TuneReport(Callback):
    """Reports every history row that has the metric."""

    metric: str

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """The scheduler may end the trial here."""
        if row is not None and self.metric in row and not state.finished:
            ray.tune.report({**row, "step": state.step, "finished": False})


class Watch(ray.tune.Callback):
    """Moves the driver's progress bar, which is left out when Tune stores its callbacks."""

    def __init__(self, metric: str, advance: Advance = silent) -> None:
        """Take the bar's advance function."""
        self.metric, self.advance = metric, advance

    def __getstate__(self) -> dict[str, Any]:
        return {"metric": self.metric, "advance": silent}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One trial less."""
        value = (trial.last_result or {}).get(self.metric)
        self.advance(1, f"{trial.config['trial']}: {self.metric} {value:.4f}" if value is not None else "")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """One trial less."""
        self.advance(1, f"{trial.config['trial']} failed")


def _run_trials(run: TuneRun, stage: Stage, trials: dict[str, Assignment], concurrent: int) -> Any:
    """Start or continue the experiment; blocks until all trials have ended."""
    tune_settings()
    artifacts = storage.join(stage.work_uri, TRIALS)
    settings = {"run": run, "trials": trials, "place": artifacts, "folder": working_folder()}
    wanted = trial_resources(run) if run.trials == "process" else {"CPU": _SLIVER}
    function = ray.tune.with_resources(ray.tune.with_parameters(run_trial, **settings), wanted)
    filesystem, root = storage.resolve(stage.work_uri)
    place = storage.join(root, EXPERIMENT)
    with progress("sweep", len(trials), "trials") as advance:
        if ray.tune.Tuner.can_restore(place, storage_filesystem=filesystem):
            tuner = ray.tune.Tuner.restore(place, function, resume_errored=True, storage_filesystem=filesystem)
            advance(sum(is_complete(storage.join(artifacts, name)) for name in trials), "finished before", earlier=True)
            _show_again(tuner, advance)
        else:
            watch = Watch(run.metric, advance)
            tuner = _tuner(run, function, list(trials), concurrent, root, filesystem, watch)
        with own_handlers():  # with Tune's own handler Ctrl-C would end a sweep as if finished
            return tuner.fit()


def _tuner(
    run: TuneRun, function: Any, names: list[str], concurrent: int, root: str, filesystem: Any, watch: Watch
) -> ray.tune.Tuner:
    return ray.tune.Tuner(
        function,
        param_space={"trial": ray.tune.grid_search(names)},
        tune_config=ray.tune.TuneConfig(
            metric=run.metric, mode=run.mode, scheduler=_scheduler(run), max_concurrent_trials=concurrent or None,
            reuse_actors=run.trials == "process", trial_dirname_creator=lambda trial: str(trial.config["trial"]),
        ),
        run_config=ray.tune.RunConfig(
            name=EXPERIMENT, storage_path=root, storage_filesystem=filesystem, verbose=0,
            failure_config=ray.tune.FailureConfig(max_failures=run.max_failures), callbacks=[watch],
        ),
    )  # fmt: skip


def _show_again(tuner: ray.tune.Tuner, advance: Advance) -> None:
    """Give a restored sweep's callback this process's progress bar (Tune has no public way)."""
    settings = getattr(getattr(tuner, "_local_tuner", None), "_run_config", None)
    for callback in getattr(settings, "callbacks", None) or ():
        if isinstance(callback, Watch):
            callback.advance = advance


def _scheduler(run: TuneRun) -> TrialScheduler | None:
    grace = run.grace_steps or run.base.validation.every or 1
    steps = run.base.training.steps
    if run.scheduler == "asha":
        return ASHAScheduler("step", max_t=steps, grace_period=min(grace, steps), reduction_factor=run.reduction_factor)
    if run.scheduler == "median":
        return MedianStoppingRule("step", grace_period=grace, min_samples_required=2)
    return None


def _cluster_config(run: TuneRun) -> RayConfig:
    """A private cluster as large as the machine.

    The dashboard is on if trials start workers: without it, Ray Train's cleaner cannot free the workers of a trial that
        was stopped early, and the next one waits for ever.
    """
    extra = 1 if run.trials == "train" else 0
    size = run.ray.num_cpus or (os.cpu_count() or 1) + extra
    return run.ray.model_copy(update={"num_cpus": size, "dashboard": run.ray.dashboard or bool(extra)})


def _result(run: TuneRun, stage: Stage, trials: Mapping[str, Assignment], item: Any) -> TrialResult:
    name = str(item.config["trial"])
    found = item.metrics or {}
    place = storage.join(stage.work_uri, TRIALS, name)
    status = "done" if is_complete(place) else "failed" if item.error else "stopped"
    figures = {key: float(found[key]) for key in found if key == "loss" or key.startswith("val_")}
    value = found.get(run.metric)
    reason = _sentence(item.error) if status == "failed" else ""
    return TrialResult(
        name, status, dict(trials[name]), None if value is None else float(value), int(found.get("step", 0)),
        round(float(found.get("time_total_s", 0.0)), 2), storage.join(run.out, TRIALS, name), reason, figures,
    )  # fmt: skip


def _sentence(error: BaseException) -> str:
    own = own_error(error)
    if own is not None:
        return str(own)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _publish(run: TuneRun, stage: Stage, results: list[TrialResult], guard: dict[str, Any]) -> Manifest:
    best = results[0]
    if best.metric is None:
        raise ConfigError(f"No trial reported {run.metric!r}; {best.name} says: {best.reason or 'nothing'}")
    table = render(results, run.metric)
    write = {"results.json": to_json(results, run), "table.txt": table + "\n", "best.txt": best_overrides(results, run)}
    for name, text in write.items():
        (stage.local / name).write_text(text)
    _plot(run, stage, results)
    storage.remove(storage.join(stage.work_uri, EXPERIMENT))
    counts = {
        "trials": len(results),
        **{word: sum(item.status == word for item in results) for word in ("done", "stopped", "failed")},
    }
    metrics = {run.metric: best.metric, **{path: value for path, value in best.assignment.items()}}
    return stage.publish(counts, metrics, {"table": table, "best": best.name, **guard})


def _plot(run: TuneRun, stage: Stage, results: list[TrialResult]) -> None:
    paths = numeric_paths([item.assignment for item in results])
    if paths:
        rows = [{**item.assignment, run.metric: item.metric} for item in results]
        save_figure(sweep_plot(rows, paths, run.metric), str(stage.local / "sweep.png"))


def _knobs(run: TuneRun, resource: str) -> str:
    if run.trials == "process":
        return "cpus_per_trial" if resource == "CPU" else "gpus_per_trial"
    return "base.ray.num_workers or base.ray.cpus_per_worker" if resource == "CPU" else "base.ray.use_gpu"
