"""Judge a modification text exactly: parse it, resolve its names, apply it, compare the scenes."""

import re
from dataclasses import dataclass
from functools import lru_cache

from cirray.core.errors import DataError
from cirray.data.shapes.grammar import COMPARATIVE, NAMES, TEMPLATES
from cirray.data.shapes.scenes import COLOURS, PLACES, SHAPES, SIZES, Edit, Scene, Thing, apply

_SIZE_OF = {comparative: size for size, comparative in COMPARATIVE.items()}


@dataclass(frozen=True)
class Name:
    """What a text says of an object; empty fields are not said."""

    place: str = ""
    colour: str = ""
    shape: str = ""

    def cells(self, scene: Scene) -> list[int]:
        """Every cell whose object fits this name."""
        return [cell for cell in scene.occupied if self._fits(cell, scene.cells[cell])]

    def _fits(self, cell: int, thing: Thing | None) -> bool:
        assert thing is not None
        said = ((self.place, PLACES[cell]), (self.colour, thing.colour), (self.shape, thing.shape))
        return all(not word or word == truth for word, truth in said)


@dataclass(frozen=True)
class Instruction:
    """A parsed text, not yet bound to a scene."""

    kind: str
    names: tuple[Name, ...] = ()
    value: str = ""
    thing: Thing | None = None
    place: str = ""

    def bind(self, scene: Scene) -> Edit | None:
        """The edit meant in this scene, or None when a name does not mean exactly one object."""
        cells = [name.cells(scene) for name in self.names]
        if any(len(found) != 1 for found in cells):
            return None
        if self.kind == "add":
            return Edit("add", PLACES.index(self.place), thing=self.thing)
        other = PLACES.index(self.place) if self.kind == "move" else cells[1][0] if self.kind == "swap" else -1
        return Edit(self.kind, cells[0][0], value=self.value, other=other)


@dataclass(frozen=True)
class Judgement:
    """Verdict on a text for an ordered pair of scenes.

    `parses`: it is a sentence of the grammar. `exact`: every name means exactly one object and the edit turns the
    reference into exactly the target. `reversed`: it gives the change from target to reference and not the one asked
    for (a swap text that fits both ways is not reversed).
    """

    parses: bool
    exact: bool
    reversed: bool

    @property
    def direction(self) -> bool:
        """Whether the direction is right: the text is not one for the reversed pair."""
        return not self.reversed


def parse(text: str) -> Instruction | None:
    """The instruction in a text, or None when it is not a sentence of the grammar."""
    words = " ".join(text.lower().split())
    for kind, pattern in _patterns():
        match = pattern.fullmatch(words)
        if match:
            return _instruction(kind, match.groupdict())
    return None


def satisfies(instruction: Instruction, reference: Scene, target: Scene) -> bool:
    """Whether the instruction turns `reference` into exactly `target`."""
    edit = instruction.bind(reference)
    if edit is None:
        return False
    try:
        return apply(edit, reference) == target
    except DataError:
        return False


def judge(text: str, reference: Scene, target: Scene) -> Judgement:
    """Judge a text as the modification from `reference` to `target`."""
    instruction = parse(text)
    if instruction is None:
        return Judgement(False, False, False)
    exact = satisfies(instruction, reference, target)
    return Judgement(True, exact, not exact and satisfies(instruction, target, reference))


@lru_cache(maxsize=1)
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((kind, re.compile(_pattern(text))) for kind, texts in TEMPLATES.items() for text in texts)


def _pattern(template: str) -> str:
    sizes, colours, shapes = _any(SIZES), _any(COLOURS), _any(SHAPES)
    plain = {key: _any(values) for key, values in _words().items()}
    thing = f"(?P<thing>{sizes} {colours} {shapes})"
    slots = {key: f"(?P<{key}>{pattern})" for key, pattern in plain.items()}
    objects = {key: _name_pattern(key) for key in ("object", "partner")}
    return template.format(**slots, **objects, thing=thing)


def _words() -> dict[str, tuple[str, ...]]:
    comparatives = tuple(COMPARATIVE.values())
    return {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "comparative": comparatives, "place": PLACES}


def _name_pattern(prefix: str) -> str:
    options = []
    for number, name in enumerate(NAMES):
        slots = {key: f"(?P<{prefix}_{key}_{number}>{_any(values)})" for key, values in _words().items()}
        options.append(name.format(**slots))
    return "(?:" + "|".join(options) + ")"


def _any(values: tuple[str, ...]) -> str:
    return "(?:" + "|".join(values) + ")"


def _instruction(kind: str, groups: dict[str, str | None]) -> Instruction:
    found = {key: value for key, value in groups.items() if value is not None}
    value = found.get("colour") or found.get("shape") or found.get("size") or _SIZE_OF.get(found.get("comparative", ""))
    thing = None
    if "thing" in found:
        size, colour, shape = found["thing"].split()
        thing = Thing(colour, shape, size)
    prefixes = [prefix for prefix in ("object", "partner") if any(key.startswith(prefix) for key in found)]
    named = tuple(_name(prefix, found) for prefix in prefixes)
    return Instruction(kind, named, value or "", thing, found.get("place", ""))


def _name(prefix: str, found: dict[str, str]) -> Name:
    said = {key.split("_")[1]: value for key, value in found.items() if key.startswith(f"{prefix}_")}
    return Name(**said)
