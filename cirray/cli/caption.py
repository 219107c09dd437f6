"""`cirray caption`."""

from cirray.cli.verb import Verb, partial_status

VERB = Verb(
    name="caption",
    group="texts",
    help="write one short caption for every image (Ray Data), for templates",
    config="cirray.pipelines.captions.config:CaptionRun",
    run="cirray.pipelines.captions.caption:run_caption",
    example="cirray caption shapes/caption",
    status=partial_status,
)
