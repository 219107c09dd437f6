"""`cirray gallery`."""

from typing import Any

from cirray.cli.verb import Verb
from cirray.core.unfinished import stage_function


@stage_function
def run(gallery: Any) -> Any:
    """Make a gallery, and note it as the one that `cirray search` and `cirray serve` take.

    Raises CirrayError as `run_gallery`.
    """
    from cirray.index.latest import remember
    from cirray.pipelines.search.living import run_gallery

    made = run_gallery(gallery)
    remember(gallery.root, gallery.out)
    return made


VERB = Verb(
    name="gallery",
    group="search",
    help="make a gallery that is added to and removed from while it is searched",
    config="cirray.pipelines.search.living_config:GalleryRun",
    run="cirray.cli.gallery:run",
    example="cirray gallery",
)
