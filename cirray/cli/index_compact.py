"""`cirray index compact`."""

from cirray.cli.verb import Verb

VERB = Verb(
    name="index compact",
    group="search",
    help="drop what is outdated in a gallery, and write its small files together",
    config="cirray.pipelines.search.living_config:CompactRun",
    run="cirray.pipelines.search.changes:run_compact",
    example="cirray index compact GALLERY",
    positional="gallery",
    show=lambda changed: changed.text(),
    restarts=False,
)
