"""Whether each shape of query does what it says, on the embedded world, whose scenes are known.

    python jobs/benchmarks/bench_shapes.py root=DIR [world=@world] [checkpoint=@checkpoint] [index=@index] [queries=200]

Every line is a share of the first ten answers that hold certain objects (colour and shape), the mean over seeds of the
queries with half their spread, beside the same for the query without the shape, and for any picture of the gallery.
"""

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from pydantic import Field

from cirray.cli.main import guarded, resolve
from cirray.core.fields import Place
from cirray.core.log import say
from cirray.core.places import Run
from cirray.core.storage import local_path
from cirray.data.shapes.scenes import Scene, Thing, pick
from cirray.data.shapes.world import read_scenes
from cirray.queries import ComposedQuery, Further, Negative, Reference
from cirray.search_engine import SearchEngine
from cirray.types import Ranking

Kind = tuple[str, str]
"""Colour and shape of an object."""
Case = tuple[ComposedQuery, frozenset[Kind]]
"""A query, and the objects that its answers are looked through for."""
_BATCH = 32


class ShapesConfig(Run):
    """What is measured."""

    world: Place = "@world"
    checkpoint: Place = "@checkpoint"
    index: Place = "@index"
    queries: int = Field(200, ge=1)
    """Queries of each seed."""
    seeds: tuple[int, ...] = (0, 1, 2)


class World:
    """A retriever over a gallery whose scenes are known."""

    def __init__(self, config: ShapesConfig) -> None:
        """Load both."""
        self.engine = SearchEngine.open(config.checkpoint, config.index)
        scenes = read_scenes(local_path(config.world))
        self.scenes = {name: scenes[name] for name in self.engine.gallery.ids if name in scenes}
        self.names = sorted(self.scenes)

    def drawn(self, rng: np.random.Generator) -> tuple[str, Scene, int]:
        """A gallery image, and a cell of it that holds an object."""
        name = pick(rng, self.names)
        return name, self.scenes[name], int(pick(rng, self.scenes[name].occupied))

    def chance(self, cases: Sequence[Case]) -> float:
        """The same share of all pictures."""
        held = [kinds(scene) for scene in self.scenes.values()]
        return float(np.mean([wanted <= found for _, wanted in cases for found in held]))

    def share(self, cases: Sequence[Case]) -> float:
        """Mean share of the first ten answers that hold all objects of their case."""
        found = []
        for start in range(0, len(cases), _BATCH):
            some = cases[start : start + _BATCH]
            for (_, wanted), answer in zip(some, self.engine.search_many([query for query, _ in some]), strict=True):
                assert isinstance(answer, Ranking), answer
                found.append(np.mean([wanted <= kinds(self.scenes[name]) for name in answer.ids]))
        return float(np.mean(found))


def kinds(scene: Scene) -> frozenset[Kind]:
    """Colours and shapes of a scene's objects."""
    return frozenset((thing.colour, thing.shape) for thing in scene.cells if thing is not None)


def cell_box(cell: int) -> tuple[float, float, float, float]:
    """The box of a cell of the 3 x 3 grid, in shares."""
    row, column = divmod(cell, 3)
    return column / 3, row / 3, 1 / 3, 1 / 3


def boxes(world: World, rng: np.random.Generator) -> Iterator[tuple[Case, ...]]:
    """The object in the box: by the whole picture, by the box."""
    while True:
        name, scene, cell = world.drawn(rng)
        thing = _thing(scene, cell)
        wanted = frozenset({(thing.colour, thing.shape)})
        asked = (None, cell_box(cell))
        yield tuple((world.engine.prepare(gallery_id=name, further=Further(box=box)), wanted) for box in asked)


def references(world: World, rng: np.random.Generator) -> Iterator[tuple[Case, ...]]:
    """An object of each of two pictures: by one of them, by both."""
    while True:
        (one, first, cell), (two, second, other) = world.drawn(rng), world.drawn(rng)
        things = _thing(first, cell), _thing(second, other)
        wanted = frozenset((thing.colour, thing.shape) for thing in things)
        both = Further(references=(Reference(gallery_id=one), Reference(gallery_id=two)), exclude=(one, two))
        alone = world.engine.prepare(gallery_id=one, further=Further(exclude=(two,)))
        yield (alone, wanted), (world.engine.prepare(further=both), wanted)


def unwanted(
    make: Callable[[str, Thing, int], Negative], world: World, rng: np.random.Generator
) -> Iterator[tuple[Case, ...]]:
    """An object of the reference: without a word about it, with it as what is not wanted."""
    while True:
        name, scene, cell = world.drawn(rng)
        thing = _thing(scene, cell)
        wanted = frozenset({(thing.colour, thing.shape)})
        told = (None, make(name, thing, cell))
        yield tuple((world.engine.prepare(gallery_id=name, further=Further(negative=item)), wanted) for item in told)


def _thing(scene: Scene, cell: int) -> Thing:
    thing = scene.cells[cell]
    assert thing is not None
    return thing


def unwanted_by_text(world: World, rng: np.random.Generator) -> Iterator[tuple[Case, ...]]:
    """What is not wanted is said in words."""
    return unwanted(lambda _, thing, cell: Negative(f"{thing.size} {thing.colour} {thing.shape}"), world, rng)


def unwanted_by_picture(world: World, rng: np.random.Generator) -> Iterator[tuple[Case, ...]]:
    """What is not wanted is shown by a box."""
    return unwanted(lambda name, _, cell: Negative(picture=Reference(gallery_id=name, box=cell_box(cell))), world, rng)


SHAPES: dict[str, Callable[[World, np.random.Generator], Iterator[tuple[Case, ...]]]] = {
    "a box finds its object": boxes,
    "two references find an object of each": references,
    "a text that is not wanted (lower is better)": unwanted_by_text,
    "a picture that is not wanted (lower is better)": unwanted_by_picture,
}


def measure(config: ShapesConfig) -> None:
    """Print one line a shape."""
    world = World(config)
    say(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {len(world.names):,} images")
    say("| shape | any picture | without | with |")
    say("|---|---|---|---|")
    for name, make in SHAPES.items():
        shares = []
        for seed in config.seeds:
            drawn = make(world, np.random.default_rng(seed))
            pairs = [next(drawn) for _ in range(config.queries)]
            without, by = zip(*pairs, strict=True)
            shares.append([world.chance(by), world.share(without), world.share(by)])
        told = [f"{np.mean(column):.3f} ± {np.ptp(column) / 2:.3f}" for column in np.transpose(shares)]
        say(f"| {name} | {' | '.join(told)} |")


def main() -> int:
    """Entry point."""
    return guarded(lambda: measure(resolve(ShapesConfig, [], sys.argv[1:]).config))


if __name__ == "__main__":
    sys.exit(main())
