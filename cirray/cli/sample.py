"""`cirray sample`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="sample",
    group="texts",
    help="draw a part of a triplets artifact, for studies of scale and quality",
    config="cirray.pipelines.zeroshot.config:SampleRun",
    run="cirray.pipelines.zeroshot.sample:run_sample",
    example="cirray sample shapes/sample",
)
