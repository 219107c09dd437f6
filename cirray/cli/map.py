"""`cirray map`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="map",
    group="training",
    help="train the map from images to pseudo-words (zero-shot)",
    config="cirray.pipelines.zeroshot.config:MapRun",
    run="cirray.pipelines.zeroshot.map:run_map",
    example="cirray map shapes/map",
)
