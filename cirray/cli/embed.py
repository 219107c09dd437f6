"""`cirray embed`."""

from cirray.cli.verb import Verb, partial_status

VERB = Verb(
    name="embed",
    group="data",
    help="run every image through the frozen vision tower once (Ray Data)",
    config="cirray.pipelines.features.config:EmbedRun",
    run="cirray.pipelines.features.embed:run_embed",
    example="cirray embed shapes/embed",
    status=partial_status,
)
