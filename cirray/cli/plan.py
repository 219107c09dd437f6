"""`cirray plan`."""

from dataclasses import replace
from typing import Any

from cirray.cli.config import verb_of
from cirray.cli.verb import verb
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
