"""`cirray index remove`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="index remove",
    group="search",
    help="remove images from a gallery beside a running service",
    config="cirray.pipelines.search.living_config:RemoveRun",
    run="cirray.pipelines.search.changes:run_remove",
    example="cirray index remove GALLERY ID",
    positional="gallery ids...",
    show=lambda changed: changed.text(),
    restarts=False,
)
