"""`cirray score`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="score",
    group="evaluation",
    help="compute a benchmark's figures from saved vectors, ranked lists or a submission file, without a model",
    config="cirray.pipelines.evaluation.config:ScoreRun",
    run="cirray.pipelines.evaluation.score:run_score",
    example="cirray score data.folder.root=my-data ranks=report",
    show=lambda scored: scored.text(),
)
