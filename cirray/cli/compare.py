"""`cirray compare`: checkpoints side by side."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="compare",
    group="evaluation",
    help="score several checkpoints on the same queries: one table, one page with pictures",
    config="cirray.pipelines.evaluation.config:CompareRun",
    run="cirray.pipelines.evaluation.compare:run_compare",
    example="cirray compare checkpoints.labels=my/labelled checkpoints.tuned=my/checkpoint out=my/comparison",
    show=lambda manifest: manifest.extra["table"],
)
