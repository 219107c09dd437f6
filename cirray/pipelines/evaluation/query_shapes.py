"""What each shape of query does, on the embedded world, whose scenes are known: the share of the first ten answers that
hold the objects asked for, beside the same share without the shape and for any picture of the gallery.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cirray.core.storage import local_path
from cirray.data.shapes.grammar import phrase
from cirray.data.shapes.scenes import PLACES, Scene, Thing, pick
from cirray.data.shapes.world import read_scenes
from cirray.evaluation.metrics import spread
from cirray.evaluation.tables import percent, text_table
from cirray.queries import ComposedQuery, Further, Negative, Reference
from cirray.search_engine import SearchEngine
from cirray.types import Ranking

Kinds = frozenset[tuple[str, str]]
"""Colours and shapes of objects."""
_BATCH = 32
_AWAY = " (less is better)"


@dataclass(frozen=True)
class Case:
    """A query of some shape, the same without it (None: there is none), and the objects that are looked for."""

    wanted: Kinds
    shaped: ComposedQuery
    plain: ComposedQuery | None = None


@dataclass(frozen=True)
class ShapeRow:
    """One shape of query; shares of 0 to 1, one a seed."""

    name: str
    chance: tuple[float, ...]
    """Of any picture of the gallery."""
    plain: tuple[float, ...]
    """Without the shape; empty where there is no such query."""
    shaped: tuple[float, ...]

    def cells(self) -> list[str]:
        """Name and shares in percent, mean and deviation over the seeds."""
        return [self.name, *(percent(spread(shares)) if shares else "" for shares in self._shares)]

    @property
    def _shares(self) -> tuple[tuple[float, ...], ...]:
        return self.chance, self.plain, self.shaped

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"name": self.name, "chance": self.chance, "without": self.plain, "with": self.shaped}


class World:
    """A retriever over a gallery whose scenes are known."""

    def __init__(self, engine: SearchEngine, scenes: dict[str, Scene]) -> None:
        """Keep the scenes of the gallery."""
        self.engine = engine
        self.scenes = {name: scenes[name] for name in engine.gallery.ids if name in scenes}
        self.names = sorted(self.scenes)

    def drawn(self, rng: np.random.Generator) -> "Drawn":
        """A gallery image, and an object of it."""
        name = pick(rng, self.names)
        scene = self.scenes[name]
        cell = int(pick(rng, scene.occupied))
        thing = scene.cells[cell]
        assert thing is not None
        return Drawn(name, scene, cell, thing)

    def asked(self, text: str | None = None, name: str | None = None, **further: Any) -> ComposedQuery:
        """A query for ten answers."""
        return self.engine.prepare(text, gallery_id=name, further=Further(**further))

    def chance(self, cases: Sequence[Case]) -> float:
        """Mean share of all pictures that hold a case's objects."""
        held = [kinds(scene) for scene in self.scenes.values()]
        return float(np.mean([case.wanted <= found for case in cases for found in held]))

    def share(self, queries: Sequence[ComposedQuery], wanted: Sequence[Kinds]) -> float:
        """Mean share of the first ten answers that hold a case's objects."""
        found = []
        for start in range(0, len(queries), _BATCH):
            for place, answer in enumerate(self.engine.search_many(queries[start : start + _BATCH]), start):
                if not isinstance(answer, Ranking):
                    raise answer
                found.append(np.mean([wanted[place] <= kinds(self.scenes[name]) for name in answer.ids]))
        return float(np.mean(found))


@dataclass(frozen=True)
class Drawn:
    """A gallery image and an object of it."""

    name: str
    scene: Scene
    cell: int
    thing: Thing

    @property
    def kind(self) -> Kinds:
        """The object's colour and shape."""
        return frozenset({(self.thing.colour, self.thing.shape)})

    @property
    def part(self) -> Reference:
        """The object's cell of the picture."""
        row, column = divmod(self.cell, 3)
        return Reference(gallery_id=self.name, box=(column / 3, row / 3, 1 / 3, 1 / 3))


def kinds(scene: Scene) -> Kinds:
    """Colours and shapes of a scene's objects."""
    return frozenset((thing.colour, thing.shape) for thing in scene.cells if thing is not None)


def _text(world: World, rng: np.random.Generator) -> Case:
    one = world.drawn(rng)
    return Case(one.kind, world.asked(phrase(one.thing)))


def _picture(world: World, rng: np.random.Generator) -> Case:
    one = world.drawn(rng)
    return Case(one.kind, world.asked(name=one.name))


def _both(world: World, rng: np.random.Generator) -> Case:
    one, other = world.drawn(rng), world.drawn(rng)
    free = [cell for cell in range(9) if cell not in one.scene.occupied] or [one.cell]
    text = f"add a {phrase(other.thing)} in the {PLACES[int(pick(rng, free))]}"
    return Case(one.kind | other.kind, world.asked(text, one.name), world.asked(name=one.name))


def _references(world: World, rng: np.random.Generator) -> Case:
    one, other = world.drawn(rng), world.drawn(rng)
    both = (Reference(gallery_id=one.name), Reference(gallery_id=other.name))
    alone = world.asked(name=one.name, exclude=(other.name,))
    return Case(one.kind | other.kind, world.asked(references=both), alone)


def _weighted(world: World, rng: np.random.Generator) -> Case:
    one, other = world.drawn(rng), world.drawn(rng)
    both = [(Reference(gallery_id=one.name, weight=w), Reference(gallery_id=other.name)) for w in (1.0, 3.0)]
    equal, heavy = (world.asked(references=pair) for pair in both)
    return Case(one.kind, heavy, equal)


def _unwanted_text(world: World, rng: np.random.Generator) -> Case:
    one = world.drawn(rng)
    shaped = world.asked(name=one.name, negative=Negative(phrase(one.thing)))
    return Case(one.kind, shaped, world.asked(name=one.name))


def _unwanted_picture(world: World, rng: np.random.Generator) -> Case:
    one = world.drawn(rng)
    return Case(one.kind, world.asked(name=one.name, negative=Negative(picture=one.part)), world.asked(name=one.name))


def _box(world: World, rng: np.random.Generator) -> Case:
    one = world.drawn(rng)
    return Case(one.kind, world.asked(name=one.name, box=one.part.box), world.asked(name=one.name))


def _excluded(world: World, rng: np.random.Generator) -> Case:
    one = world.drawn(rng)
    holding = tuple(name for name in world.names if one.kind <= kinds(world.scenes[name]))[:1_000]
    return Case(one.kind, world.asked(name=one.name, exclude=holding), world.asked(name=one.name))


SHAPES: dict[str, tuple[str, Callable[[World, np.random.Generator], Case]]] = {
    "a text alone": ("text", _text),
    "a picture alone": ("picture", _picture),
    "a picture and a text": ("picture and text", _both),
    "two pictures: an object of each": ("references", _references),
    "two pictures, one three times as heavy: its object": ("references", _weighted),
    f"not this text{_AWAY}": ("not a text", _unwanted_text),
    f"not this part of a picture{_AWAY}": ("not a picture", _unwanted_picture),
    "a box around the object": ("box", _box),
    f"all that hold it left out{_AWAY}": ("picture", _excluded),
}
"""Each row with the shape, as `/version` calls it, that a model must be able to do."""


def measure_shapes(engine: SearchEngine, world: str, queries: int, seeds: Sequence[int]) -> list[ShapeRow]:
    """Every shape of query that a model can do, over a gallery of the embedded world.

    Args:
        engine: model and gallery.
        world: root of the world.
        queries: of each seed.
        seeds: of what is drawn.
    """
    known = World(engine, read_scenes(local_path(world)))
    return [_measured(known, name, make, queries, seeds) for name, make in _possible(engine)]


def _possible(engine: SearchEngine) -> Iterator[tuple[str, Callable[[World, np.random.Generator], Case]]]:
    return ((name, make) for name, (shape, make) in SHAPES.items() if shape in engine.shapes)


def _measured(world: World, name: str, make: Any, queries: int, seeds: Sequence[int]) -> ShapeRow:
    chance, without, shaped = list[float](), list[float](), list[float]()
    for seed in seeds:
        rng = np.random.default_rng(seed)
        cases = [make(world, rng) for _ in range(queries)]
        wanted = [case.wanted for case in cases]
        plain = [case.plain for case in cases if case.plain is not None]
        chance.append(world.chance(cases))
        without += [world.share(plain, wanted)] if plain else []
        shaped.append(world.share([case.shaped for case in cases], wanted))
    return ShapeRow(name, tuple(chance), tuple(without), tuple(shaped))


def over_seeds(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[ShapeRow]:
    """Rows over several models: of each, as `ShapeRow.to_dict` told them, the mean of its draws."""

    def means(name: str, at: int) -> tuple[float, ...]:
        return tuple(float(np.mean(rows[at][name])) for rows in runs if rows[at][name])

    names = [row["name"] for row in runs[0]]
    return [ShapeRow(name, *(means(key, at) for key in ("chance", "without", "with"))) for at, name in enumerate(names)]


def shapes_title(name: str) -> str:
    """Title of one model's rows."""
    return f"{name}: percent of the first ten answers that hold the object, by shape of query"


def shapes_lines(rows: Sequence[ShapeRow]) -> list[list[str]]:
    """Cells of a table of the rows; the first line is its header."""
    return [["", "any picture", "without it", "with it"], *(row.cells() for row in rows)]


def shapes_table(name: str, rows: Sequence[ShapeRow]) -> str:
    """One model's rows as text."""
    return text_table(shapes_lines(rows), shapes_title(name))
