"""`cirray world`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="world",
    group="data",
    help="write the embedded world `shapes`: images, texts, queries",
    config="cirray.pipelines.data.config:WorldRun",
    run="cirray.pipelines.data.world:run_world",
    example="cirray world out=my/world shapes.seed=0",
)
