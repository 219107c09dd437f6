"""`cirray evaluate`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="evaluate",
    group="evaluation",
    help="score a checkpoint on a benchmark and write a report with pictures",
    config="cirray.evaluation.config:EvaluateRun",
    run="cirray.pipelines.evaluation.evaluate:run_evaluate",
    example="cirray evaluate shapes/evaluate",
    show=lambda manifest: manifest.extra["table"],
)
