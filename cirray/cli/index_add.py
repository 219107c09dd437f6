"""`cirray index add`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="index add",
    group="search",
    help="add pictures or vectors to a gallery beside a running service",
    config="cirray.pipelines.search.living_config:AddRun",
    run="cirray.pipelines.search.changes:run_add",
    example="cirray index add GALLERY FOLDER",
    positional="gallery source",
    show=lambda changed: changed.text(),
    restarts=False,
)
