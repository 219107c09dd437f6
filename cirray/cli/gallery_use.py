"""`cirray gallery use`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="gallery use",
    group="search",
    help="let a name stand for a gallery, or for the one before, beside the service that serves the name",
    config="cirray.pipelines.search.living_config:UseRun",
    run="cirray.pipelines.search.use:run_use",
    example="cirray gallery use GALLERY --name shop",
    positional="index",
    show=str,
    restarts=False,
)
