"""`cirray clip`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="clip",
    group="training",
    help="make a small CLIP of the embedded world, or train one on images and captions",
    config="cirray.pipelines.zeroshot.config:ClipRun",
    run="cirray.pipelines.zeroshot.clip:run_clip",
    example="cirray clip shapes/clip",
)
