"""`cirray mine`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="mine",
    group="texts",
    help="choose image pairs that are worth a text",
    config="cirray.pipelines.texts.config:MineRun",
    run="cirray.pipelines.texts.mine:run_mine",
    example="cirray mine shapes/mine",
)
