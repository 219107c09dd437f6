"""`cirray plan`."""

from dataclasses import replace
from typing import Any

from cirray.cli.config import verb_of
from cirray.cli.verb import Verb, as_asked, verb
from cirray.core.errors import ConfigError

PLANNABLE = ("embed", "train-generator", "generate", "pretrain", "finetune", "tune")


def plan_file(run: Any) -> Any:
    """Count what the run of files would need.

    Raises ConfigError: no file, one for a verb that needs no plan, or a field that it does not have.
    """
    from cirray.cli.main import configured
    from cirray.pipelines.planning.inputs import RecipesBeside
    from cirray.pipelines.planning.plan import plan_run

    if not run.files:
        raise ConfigError("Name the run's files: cirray plan cirr/finetune-ptha-improved.")
    chosen = verb(verb_of(run.files, run.verb, PLANNABLE))
    config = configured(chosen, [*run.files, *run.assignments]).config
    return replace(plan_run(config, run.plan, RecipesBeside.of(run.files[0], config.root)), as_json=run.as_json)


VERB = Verb(
    name="plan",
    group="tools",
    help="count what a run needs before a cluster is rented: memory, disk, time (exit 0 it fits, 1 warnings)",
    config="cirray.pipelines.planning.config:PlanRun",
    run="cirray.cli.plan:plan_file",
    example="cirray plan cirr/finetune-ptha-improved training.batch=256 plan.gpu=a100",
    show=as_asked,
    switches={"--json": "as_json=true"},
    gathers=("files", "assignments"),
    restarts=False,
)
