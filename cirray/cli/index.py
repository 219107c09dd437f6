"""`cirray index`, `cirray gallery` (noted as what `cirray search` and `cirray serve` take) and `cirray index add`."""

from typing import Any

from cirray.core.config import given
from cirray.core.errors import ConfigError
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


def add_rows(add: Any) -> Any:
    """Add to a gallery.

    Raises ConfigError for settings that a service does not take, and CirrayError as `run_add` or as the service says.
    """
    from cirray.pipelines.search.changes import run_add

    if add.url:
        return _by_service(add)
    if add.into:
        raise ConfigError("into= names one of a service's galleries: give its url= too, or gallery= to add here.")
    return run_add(add)


def _by_service(add: Any) -> Any:
    """Ask the service for one part of the file after the other."""
    from cirray.core.progress import progress
    from cirray.pipelines.search.changes import Changed
    from cirray.serving.client import SearchClient

    named = [name for name in ("gallery", "prefix", "metadata", "gone", "checkpoint", "device") if given(add, name)]
    if named or not add.source:
        wrong = f"leave out {named[0]}=" if named else "name it with source="
        raise ConfigError(f"The service at {add.url!r} adds the rows of one Parquet file as they are; {wrong}.")
    with SearchClient(add.url, timeout_s=120.0, gallery=add.into) as client:
        answer, count = client.load(add.source), 0
        with progress("add vectors", answer["total"], "rows") as advance:
            while True:
                count += answer["written"]
                advance(answer["written"])
                if answer["next"] is None:
                    return Changed(add.into or add.url, {"added or replaced": count})
                answer = client.load(add.source, answer["next"])
