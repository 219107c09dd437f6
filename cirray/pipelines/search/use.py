"""Chooses the gallery that a name stands for."""

from cirray.core import storage
from cirray.core.errors import ConfigError
from cirray.index.latest import chosen
from cirray.index.uses import SUFFIX, Use, use_now, uses_of, write_uses
from cirray.pipelines.search.living_config import UseRun


def run_use(run: UseRun) -> str:
    """Let a name stand for another gallery, or for the one before; returns what is said.

    A gallery is opened with its checkpoint and answers a query before the name changes.

    Raises ArtifactError: gallery or checkpoint are missing, or there is no such name; ConfigError: there is none
    before; IndexMismatchError: the checkpoint did not make the gallery.
    """
    place = storage.join(run.root, "galleries", f"{run.name}{SUFFIX}")
    if run.back:
        *before, _ = uses_of(place)
        if not before:
            raise ConfigError(f"The name {run.name!r} has stood for one gallery only; there is none before it.")
        write_uses(place, before)
        return _told(run.name, before[-1], place)
    from cirray.search_engine import SearchEngine

    checkpoint, index = chosen(run)
    SearchEngine.open(checkpoint, index).probe()
    use = use_now(index, checkpoint)
    write_uses(place, [*(uses_of(place) if storage.exists(place) else []), use])
    return _told(run.name, use, place)


def _told(name: str, use: Use, place: str) -> str:
    return f"{name}: {use.index}, queried by {use.checkpoint}\nserved by: cirray serve --index {place}"
