"""`cirray towers`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="towers",
    group="training",
    help="make the frozen towers: vision and language model",
    config="cirray.pipelines.features.config:TowersRun",
    run="cirray.pipelines.features.towers:run_towers",
    example="cirray towers shapes/towers",
)
