"""`cirray compare`: methods, each a chain of stages in one YAML file, in one table over seeds."""

from typing import Any

from cirray.cli.verb import Verb, verb
from cirray.core.config import Config
from cirray.core.environ import limit_threads


def find(name: str) -> tuple[type[Config], str]:
    """Config class and function of a verb.

    Raises:
        ConfigError: for an unknown verb.
    """
    found = verb(name)
    return found.config_class(), found.run


def run(config: Any) -> Any:
    """Run a study; its stages are verbs of this command line."""
    limit_threads()
    from cirray.pipelines.study.run import run_study

    return run_study(config, find)


VERB = Verb(
    name="compare",
    group="evaluation",
    help="compare methods over seeds: one table, expectations, curves",
    config="cirray.pipelines.study.config:StudyRun",
    run="cirray.cli.compare:run",
    example="cirray compare jobs/configs/compare-shapes-small-cpu.yaml seeds=[0]",
    show=lambda manifest: f"{manifest.extra['table']}\n\nreport      {manifest.extra['out']}/report.html",
)
