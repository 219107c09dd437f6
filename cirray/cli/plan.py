"""`cirray plan`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cirray.cli.verb import Verb, verb
from cirray.core.errors import ConfigError

PLANNABLE = ("embed", "train-generator", "generate", "pretrain", "finetune", "tune")


def plan_file(run: Any) -> Any:
    """Count what the run of a file would need.

    Raises:
        ConfigError: no file, one for a verb that needs no plan, or a field that it does not have.
    """
    from cirray.cli.main import resolve
    from cirray.pipelines.planning.inputs import RecipesBeside
    from cirray.pipelines.planning.plan import plan_run

    if not run.file:
        raise ConfigError("Name the run's file: cirray plan jobs/configs/cirr/finetune-ptha-improved.yaml.")
    config = resolve(verb(verb_of(run.file, run.verb)).config_class(), run.file, run.assignments)
    return replace(plan_run(config, run.plan, RecipesBeside.of(run.file)), as_json=run.as_json)


def verb_of(file: str, named: str = "") -> str:
    """The verb that a file is for: as named, or that with which the file's name begins.

    Raises:
        ConfigError: when that is none that can be planned.
    """
    stem = Path(file).stem
    begun = [name for name in PLANNABLE if f"{stem}-".startswith(f"{name}-")]
    found = named or max(begun, key=len, default=stem.partition("-")[0])
    if found not in PLANNABLE:
        raise ConfigError(
            f"Which verb {file!r} is for cannot be told from its name, or {found!r} needs no plan; say "
            f"verb=NAME with one of {', '.join(PLANNABLE)}."
        )
    return found


def _show(report: Any) -> str:
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if report.as_json else report.text()


VERB = Verb(
    name="plan",
    group="tools",
    help="count what a run needs before a cluster is rented: memory, disk, time (exit 0 it fits, 1 warnings)",
    config="cirray.pipelines.planning.config:PlanRun",
    run="cirray.cli.plan:plan_file",
    example="cirray plan jobs/configs/cirr/finetune-ptha-improved.yaml training.batch=256 plan.gpu=a100",
    show=_show,
    switches={"--json": "as_json=true"},
    gathers=("file", "assignments"),
    restarts=False,
)
