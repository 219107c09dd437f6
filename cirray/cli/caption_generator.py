"""`cirray caption-generator`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="caption-generator",
    help="make a generator that fills templates with captions (SPN), for `cirray generate`",
    config="cirray.pipelines.captions.config:CaptionGeneratorRun",
    run="cirray.pipelines.captions.generator:run_caption_generator",
    example="cirray caption-generator jobs/configs/caption-generator-shapes-small-cpu.yaml",
)
