"""`cirray tune`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="tune",
    group="training",
    help="sweep loss weights and other fields (Ray Tune)",
    config="cirray.pipelines.training.config:TuneRun",
    run="cirray.pipelines.training.tune:run_tune",
    example="cirray tune shapes/tune",
)
