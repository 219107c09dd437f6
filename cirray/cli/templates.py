"""`cirray templates`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="templates",
    group="texts",
    help="make a generator that fills templates with captions, for `cirray generate`",
    config="cirray.pipelines.captions.config:CaptionGeneratorRun",
    run="cirray.pipelines.captions.generator:run_caption_generator",
    example="cirray templates shapes/templates",
)
