"""`cirray towers`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="towers",
    help="make the frozen towers: vision and language model",
    config="cirray.pipelines.config:TowersRun",
    run="cirray.pipelines.towers:run_towers",
    example="cirray towers jobs/configs/towers-shapes-small-cpu.yaml",
)
