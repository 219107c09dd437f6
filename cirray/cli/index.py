"""`cirray index`."""

from cirray.cli.verb import Verb, partial_status

VERB = Verb(
    name="index",
    group="search",
    help="embed a gallery with a checkpoint and build its FAISS index",
    config="cirray.pipelines.search.config:IndexRun",
    run="cirray.pipelines.search.index:run_index",
    example="cirray index --checkpoint DIR --images FOLDER --out DIR",
    status=partial_status,
)
