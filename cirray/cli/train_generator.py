"""`cirray train-generator`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="train-generator",
    group="texts",
    help="train the generator of modification texts on labelled triplets",
    config="cirray.pipelines.texts.config:GeneratorRun",
    run="cirray.pipelines.texts.generator:run_generator",
    example="cirray train-generator shapes/train-generator",
)
