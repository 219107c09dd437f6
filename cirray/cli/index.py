"""`cirray index`."""

from typing import Any

from cirray.cli.verb import Verb, partial_status
from cirray.core.unfinished import stage_function


@stage_function
def run(index: Any) -> Any:
    """Make an index, and note it as the one that `cirray search` and `cirray serve` take.

    Raises CirrayError as `run_index`.
    """
    from cirray.index.latest import remember
    from cirray.pipelines.search.index import run_index

    made = run_index(index)
    remember(index.root, index.out)
    return made


VERB = Verb(
    name="index",
    group="search",
    help="embed a gallery with a model, trained or not, and build its FAISS index",
    config="cirray.pipelines.search.config:IndexRun",
    run="cirray.cli.index:run",
    example="cirray index --model MODEL --images FOLDER",
    switches={"--living": "living=true"},
    status=partial_status,
)
