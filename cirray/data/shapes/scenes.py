"""Scenes of coloured shapes on a 3 x 3 grid, and the seven edits between them, as plain values."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cirray.core.errors import DataError, unknown_name

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "diamond")
SIZES = ("small", "large")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
EDITS = ("recolour", "reshape", "resize", "add", "remove", "move", "swap")
CELLS = len(PLACES)
MIN_OBJECTS, MAX_OBJECTS = 2, 5
RESERVED_SHARE = 4
"""One scene in this many is reserved for pretraining: no world of any seed holds it."""

_ATTRIBUTES = {"recolour": "colour", "reshape": "shape", "resize": "size"}

ItemT = TypeVar("ItemT")


class Thing(NamedTuple):
    """One object: a colour of `COLOURS`, a shape of `SHAPES`, a size of `SIZES`."""

    colour: str
    shape: str
    size: str


class Palette(NamedTuple):
    """The attributes that scenes are drawn from; fewer make images more alike."""

    colour: tuple[str, ...] = COLOURS
    shape: tuple[str, ...] = SHAPES
    size: tuple[str, ...] = SIZES


FULL = Palette()


@dataclass(frozen=True)
class Scene:
    """Nine cells in reading order (see `PLACES`), each a `Thing` or None."""

    cells: tuple[Thing | None, ...]

    @cached_property
    def occupied(self) -> tuple[int, ...]:
        """Indices of the cells that hold an object."""
        return tuple(index for index, thing in enumerate(self.cells) if thing is not None)

    @cached_property
    def empty(self) -> tuple[int, ...]:
        """Indices of the cells that hold nothing."""
        return tuple(index for index, thing in enumerate(self.cells) if thing is None)

    @cached_property
    def reserved(self) -> bool:
        """Whether this scene is reserved for pretraining: no world of any seed holds it."""
        text = ",".join("" if thing is None else " ".join(thing) for thing in self.cells)
        return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % RESERVED_SHARE == 0

    def to_json(self) -> list[list[str] | None]:
        """Plain values: nine entries, null or [colour, shape, size]."""
        return [None if thing is None else list(thing) for thing in self.cells]

    @classmethod
    def from_json(cls, values: Any) -> "Scene":
        """Inverse of `to_json`.

        Raises DataError when the values are not nine cells of known colours, shapes and sizes.
        """
        if not isinstance(values, list) or len(values) != CELLS:
            raise DataError(f"A scene is a list of {CELLS} cells, found {values!r}.")
        return cls(tuple(None if cell is None else _thing_of(cell) for cell in values))


@dataclass(frozen=True)
class Edit:
    """One change of a scene.

    `cell` is the object that changes (for `add`, where it appears); `value` the new colour, shape or size;
    `thing` the added object; `other` the destination of a `move` or the partner of a `swap`.
    """

    kind: str
    cell: int
    value: str = ""
    thing: Thing | None = None
    other: int = -1


def pick(rng: np.random.Generator, items: Sequence[ItemT]) -> ItemT:
    """One item, uniformly."""
    return items[int(rng.integers(len(items)))]


def random_thing(rng: np.random.Generator, palette: Palette = FULL) -> Thing:
    """An object with uniform attributes."""
    return Thing(*(pick(rng, values) for values in palette))


def random_scene(
    rng: np.random.Generator,
    min_objects: int = MIN_OBJECTS,
    max_objects: int = MAX_OBJECTS,
    palette: Palette = FULL,
) -> Scene:
    """A scene with a uniform number of objects in uniform cells."""
    cells: list[Thing | None] = [None] * CELLS
    for index in rng.permutation(CELLS)[: int(rng.integers(min_objects, max_objects + 1))]:
        cells[int(index)] = random_thing(rng, palette)
    return Scene(tuple(cells))


def feasible_kinds(scene: Scene) -> tuple[str, ...]:
    """Kinds of edit that keep the scene legal: 2 to 5 objects, and a swap that changes something."""
    count = len(scene.occupied)
    barred = {
        "add": count >= MAX_OBJECTS,
        "remove": count <= MIN_OBJECTS,
        "swap": len({scene.cells[index] for index in scene.occupied}) < 2,
    }
    return tuple(kind for kind in EDITS if not barred.get(kind, False))


def random_edit(scene: Scene, rng: np.random.Generator, kind: str | None = None, palette: Palette = FULL) -> Edit:
    """An edit of the scene; uniform over feasible kinds unless `kind` is given.

    Raises DataError when `kind` is unknown or not feasible in this scene.
    """
    if kind is not None and kind not in EDITS:
        raise DataError(unknown_name("edit kind", kind, EDITS))
    kinds = feasible_kinds(scene)
    if kind is not None and kind not in kinds:
        raise DataError(f"Edit kind {kind!r} is not possible in this scene; possible: {', '.join(kinds)}.")
    kind = kind or pick(rng, kinds)
    if kind == "add":
        return Edit("add", pick(rng, scene.empty), thing=random_thing(rng, palette))
    cell = pick(rng, scene.occupied)
    if kind == "remove":
        return Edit("remove", cell)
    if kind == "move":
        return Edit("move", cell, other=pick(rng, scene.empty))
    if kind == "swap":
        return _random_swap(scene, rng)
    name = _ATTRIBUTES[kind]
    own = getattr(scene.cells[cell], name)
    return Edit(kind, cell, value=pick(rng, [value for value in getattr(palette, name) if value != own]))


def apply(edit: Edit, scene: Scene) -> Scene:
    """The scene after the edit.

    Raises DataError when the edit does not fit the scene (no object there, cell taken, too many objects, no change).
    """
    cells, thing = list(scene.cells), scene.cells[edit.cell]
    if edit.kind == "add":
        _require(thing is None and edit.thing is not None, edit, "the cell is taken or no object is given")
        cells[edit.cell] = edit.thing
    else:
        _require(thing is not None, edit, "there is no object in that cell")
        _change(edit, cells)
    _require(MIN_OBJECTS <= sum(cell is not None for cell in cells) <= MAX_OBJECTS, edit, "2 to 5 objects must remain")
    _require(tuple(cells) != scene.cells, edit, "it changes nothing")
    return Scene(tuple(cells))


def inverse(edit: Edit, scene: Scene) -> Edit:
    """The edit that undoes `edit`, given the scene before it."""
    if edit.kind == "add":
        return Edit("remove", edit.cell)
    thing = scene.cells[edit.cell]
    if edit.kind == "remove":
        return Edit("add", edit.cell, thing=thing)
    if edit.kind == "move":
        return Edit("move", edit.other, other=edit.cell)
    if edit.kind == "swap":
        return edit
    return Edit(edit.kind, edit.cell, value=getattr(thing, _ATTRIBUTES[edit.kind]))


def difference(reference: Scene, target: Scene) -> Edit | None:
    """The single edit that turns `reference` into `target`, or None when none does."""
    changed = [index for index in range(CELLS) if reference.cells[index] != target.cells[index]]
    if len(changed) == 1:
        return _cell_difference(changed[0], reference.cells[changed[0]], target.cells[changed[0]])
    if len(changed) != 2:
        return None
    first, second = changed
    if (reference.cells[first], reference.cells[second]) != (target.cells[second], target.cells[first]):
        return None
    if reference.cells[second] is None:
        return Edit("move", first, other=second)
    if reference.cells[first] is None:
        return Edit("move", second, other=first)
    return Edit("swap", first, other=second)


def _thing_of(cell: Any) -> Thing:
    if isinstance(cell, list) and len(cell) == 3:
        if all(value in names for value, names in zip(cell, FULL, strict=True)):
            return Thing(*cell)
    raise DataError(f"Scene cell {cell!r} is not null or [colour, shape, size] with known names.")


def _random_swap(scene: Scene, rng: np.random.Generator) -> Edit:
    cells = scene.occupied
    pairs = [(a, b) for a in cells for b in cells if a < b and scene.cells[a] != scene.cells[b]]
    first, second = pick(rng, pairs)
    return Edit("swap", first, other=second)


def _change(edit: Edit, cells: list[Thing | None]) -> None:
    thing = cells[edit.cell]
    assert thing is not None
    if edit.kind == "remove":
        cells[edit.cell] = None
    elif edit.kind in ("move", "swap"):
        _require(0 <= edit.other < CELLS, edit, "it has no second cell")
        _require((cells[edit.other] is None) == (edit.kind == "move"), edit, "the second cell does not fit")
        cells[edit.cell], cells[edit.other] = cells[edit.other], thing
    else:
        name = _ATTRIBUTES[edit.kind]
        _require(edit.value in getattr(FULL, name), edit, f"the value is not a {name}")
        cells[edit.cell] = thing._replace(**{name: edit.value})


def _cell_difference(cell: int, before: Thing | None, after: Thing | None) -> Edit | None:
    if before is None:
        return Edit("add", cell, thing=after)
    if after is None:
        return Edit("remove", cell)
    kinds = [kind for kind, name in _ATTRIBUTES.items() if getattr(before, name) != getattr(after, name)]
    if len(kinds) != 1:
        return None
    return Edit(kinds[0], cell, value=getattr(after, _ATTRIBUTES[kinds[0]]))


def _require(condition: bool, edit: Edit, reason: str) -> None:
    if not condition:
        raise DataError(f"Edit {edit} cannot be applied: {reason}.")
