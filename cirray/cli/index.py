"""`cirray index` and `cirray gallery`: what they make is noted as what `cirray search` and `cirray serve` take."""

from typing import Any

from cirray.core.unfinished import stage_function


@stage_function
def make_index(run: Any) -> Any:
    """Make an index. Raises CirrayError as `run_index`."""
    from cirray.pipelines.search.index import run_index

    return _noted(run, run_index(run))


@stage_function
def make_gallery(run: Any) -> Any:
    """Make a gallery. Raises CirrayError as `run_gallery`."""
    from cirray.pipelines.search.living import run_gallery

    return _noted(run, run_gallery(run))


def _noted(run: Any, made: Any) -> Any:
    from cirray.index.latest import remember

    remember(run.root, run.out)
    return made
