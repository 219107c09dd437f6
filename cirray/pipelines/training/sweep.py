"""A sweep's trials as plain values: planned from a seed, ranked, printed. No ray."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cirray.core.config import annotation_at, validate
from cirray.core.errors import ConfigError
from cirray.core.reading import typed
from cirray.core.seeding import numpy_generator
from cirray.core.trees import set_by_path
from cirray.pipelines.training.config import FinetuneRun, TuneRun
from cirray.training.config import SpaceConfig

Assignment = dict[str, Any]


@dataclass(frozen=True)
class TrialResult:
    """One trial: `status` is "done", "stopped" (early, by the scheduler) or "failed" (`reason` says why)."""

    name: str
    status: str
    assignment: Assignment
    metric: float | None
    step: int
    seconds: float
    place: str
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def plan_trials(run: TuneRun) -> dict[str, Assignment]:
    """All trials by name: the grids' product, random fields drawn for each, in an order drawn from the seed.

    In a grid's own order, from worst to best or the reverse, early stopping could not compare.
    """
    rng = numpy_generator(run.seed, "sweep")
    grids = {path: space for path, space in run.space.items() if space.kind == "grid"}
    drawn = {path: space for path, space in run.space.items() if space.kind != "grid"}
    trials = []
    for values in itertools.product(*(space.grid or () for space in grids.values())):
        for _ in range(run.samples if drawn else 1):
            random = {path: _draw(space, rng) for path, space in drawn.items()}
            trials.append({**dict(zip(grids, values, strict=True)), **random})
    order = rng.permutation(len(trials))
    return {f"t{number:03d}": trials[row] for number, row in enumerate(order)}


def trial_run(run: TuneRun, assignment: Assignment, out: str) -> FinetuneRun:
    """The training run of one trial: what was given of the base run, with the trial's values given too.

    Raises ConfigError when a path or value does not fit the run.
    """
    tree = run.given()
    base = tree.setdefault("base", {})
    for path, value in assignment.items():
        if path.split(".")[0] in ("out", "ray", "device"):
            raise ConfigError(f"Field {path!r} decides where a run works, not what comes out; it cannot be swept.")
        set_by_path(base, path, value)
    base["out"] = out
    if run.trials == "process":
        set_by_path(base, "ray.enabled", False)
        base["device"] = "cuda" if run.gpus_per_trial else "cpu"
    return validate(TuneRun, tree).base


def rank(results: Sequence[TrialResult], mode: str) -> list[TrialResult]:
    """Best first: finished trials, then stopped ones, then failed ones."""
    sign = -1.0 if mode == "max" else 1.0
    order = {"done": 0, "stopped": 1, "failed": 2}
    return sorted(
        results,
        key=lambda item: (order[item.status], sign * (item.metric if item.metric is not None else np.inf), item.name),
    )


def render(results: Sequence[TrialResult], metric: str) -> str:
    """The ranked trials as a text table."""
    paths = list(results[0].assignment) if results else []
    head = ["rank", "trial", *paths, metric, "step", "seconds", "status"]
    lines = [head]
    for place, item in enumerate(results, start=1):
        value = "-" if item.metric is None else f"{item.metric:.4f}"
        swept = [_short(item.assignment[path]) for path in paths]
        lines.append([str(place), item.name, *swept, value, str(item.step), f"{item.seconds:.1f}", item.status])
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def best_overrides(results: Sequence[TrialResult], run: TuneRun) -> str:
    """The best trial's fields, one `path=value` a line, as the command line takes them."""
    lines = [f"{path}={typed(annotation_at(run.base, path), value)}" for path, value in results[0].assignment.items()]
    return "".join(f"{line}\n" for line in lines)


def to_json(results: Sequence[TrialResult], run: TuneRun) -> str:
    """The table as plain values."""
    head = {"metric": run.metric, "mode": run.mode, "scheduler": run.scheduler}
    return json.dumps({**head, "trials": [asdict(item) for item in results]}, indent=2) + "\n"


def _draw(space: SpaceConfig, rng: np.random.Generator) -> Any:
    if space.choice is not None:
        return space.choice[int(rng.integers(len(space.choice)))]
    if space.randint is not None:
        return int(rng.integers(space.randint[0], space.randint[1] + 1))
    if space.loguniform is not None:
        low, high = np.log(space.loguniform)
        return float(np.exp(rng.uniform(low, high)))
    assert space.uniform is not None
    return float(rng.uniform(*space.uniform))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def numeric_paths(assignments: Sequence[Mapping[str, Any]]) -> list[str]:
    """Swept fields that a plot can put on an axis."""
    first = assignments[0] if assignments else {}
    return [
        path for path in first
        if all(isinstance(item[path], int | float) and not isinstance(item[path], bool) for item in assignments)
    ]  # fmt: skip
