"""Text for pretraining the small language model: differences of two described scenes, in the grammar's words.

Only reserved scenes are drawn (`Scene.reserved`), which no world of any seed holds. A cell is described by a *bag* of
words (`large red star top left`); the model sums a bag's word embeddings into one input vector, the way one soft
token of the projection stands for one cell of an image.
"""

import re
from dataclasses import dataclass

import numpy as np

from cirray.core.errors import DataError
from cirray.data.shapes.grammar import CAPTION_PARTS, caption, modification, phrases
from cirray.data.shapes.judge import parse
from cirray.data.shapes.scenes import (
    CELLS,
    COLOURS,
    EDITS,
    MAX_OBJECTS,
    MIN_OBJECTS,
    PLACES,
    SHAPES,
    SIZES,
    Edit,
    Scene,
    apply,
    feasible_kinds,
    inverse,
    pick,
    random_edit,
    random_scene,
)

DESCRIBE = "describe the image"
_ATTEMPTS = 10_000
_EDIT_ATTEMPTS = 12
_TWINS, _SWAPS, _PLACE_BEGIN = 0.3, 0.25, -2

_THING = f"(?P<thing>({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}))"
_PLACE = f"(?P<place>{'|'.join(PLACES)})"
_CAPTION_PATTERNS = tuple(re.compile(part.format(thing=_THING, place=_PLACE)) for part in CAPTION_PARTS)

Bags = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Change:
    """Two scenes a single edit apart, with the edit from the first to the second."""

    reference: Scene
    target: Scene
    edit: Edit

    def text(self, rng: np.random.Generator) -> str:
        """A true modification text; a swap names the object that comes first in reading order first.

        Worlds name the two in any order. Without one fixed order in pretraining, greedy decoding names the same object
        twice.
        """
        while True:
            text = modification(self.reference, self.edit, rng)
            if self.edit.kind != "swap" or self._first_named(text) == min(self.edit.cell, self.edit.other):
                return text

    def reversed(self) -> "Change":
        """The reverse change, from the target to the reference."""
        return Change(self.target, self.reference, inverse(self.edit, self.reference))

    def _first_named(self, text: str) -> int:
        instruction = parse(text)
        assert instruction is not None
        return instruction.names[0].cells(self.reference)[0]


@dataclass(frozen=True)
class Passage:
    """One pretraining text: described images (9 bags each), then the prompt, then the answer.

    `marks` are per-cell facts about the second of two images for the auxiliary heads: changed or not, and whether the
    first image's object there is alone in its shape and in its colour and shape.
    """

    images: tuple[Bags, ...]
    prompt: str
    answer: str
    difference: Bags = ()
    marks: tuple[tuple[int, int, int], ...] = ()


def bags(scene: Scene) -> Bags:
    """Nine bags of words, one per cell in reading order: the object's words, or `empty`, with the cell's place."""
    return tuple(tuple(f"{text} {place}".split()) for text, place in zip(phrases(scene), PLACES, strict=True))


def caption_bags(text: str) -> Bags | None:
    """The nine bags of a caption of the grammar, or None for any other text. An unnamed cell is empty."""
    described: dict[str, str] = {}
    for part in text.lower().split(" and "):
        words = " ".join(part.split())
        match = next((found for pattern in _CAPTION_PATTERNS if (found := pattern.fullmatch(words))), None)
        if match is None:
            return None
        described[match["place"]] = match["thing"]
    return tuple(tuple(f"{described.get(place, 'empty')} {place}".split()) for place in PLACES)


def reserved_scene(
    rng: np.random.Generator, min_objects: int = MIN_OBJECTS, max_objects: int = MAX_OBJECTS, twins: float = 0.0
) -> Scene:
    """A random scene kept for pretraining.

    `twins` is the share of scenes in which one object is given the shape, mostly also the colour, of another, so that
    names which mean two objects are common enough to be learned.

    Raises DataError when none is found, which cannot happen with two objects or more.
    """
    for _ in range(_ATTEMPTS):
        scene = random_scene(rng, min_objects, max_objects)
        scene = _with_twin(scene, rng) if rng.random() < twins else scene
        if scene.reserved:
            return scene
    raise DataError(f"No scene reserved for pretraining was found in {_ATTEMPTS} draws.")


def reserved_change(
    rng: np.random.Generator, max_objects: int = MAX_OBJECTS, twins: float = 0.0, swaps: float = 1 / len(EDITS)
) -> Change:
    """A change between two reserved scenes; a share `swaps` are swaps, other kinds are equally likely."""
    others = [kind for kind in EDITS if kind != "swap"]
    while True:
        scene = reserved_scene(rng, max_objects=max_objects, twins=twins)
        kind = "swap" if rng.random() < swaps else pick(rng, others)
        if kind not in feasible_kinds(scene):
            continue
        for _ in range(_EDIT_ATTEMPTS):
            edit = random_edit(scene, rng, kind)
            target = apply(edit, scene)
            if target.reserved and len(target.occupied) <= max_objects:
                change = Change(scene, target, edit)
                return change if rng.integers(2) else change.reversed()


def passage(rng: np.random.Generator, instruction: str, describe: float = 0.1) -> Passage:
    """One passage: a change asked for by `instruction`, or with probability `describe` a caption."""
    if rng.random() < describe:
        scene = reserved_scene(rng)
        return Passage((bags(scene),), DESCRIBE, caption(scene, rng))
    change = reserved_change(rng, twins=_TWINS, swaps=_SWAPS)
    reference, target = change.reference, change.target
    return Passage(
        images=(bags(reference), bags(target)),
        prompt=instruction,
        answer=change.text(rng),
        difference=difference_bags(bags(reference), bags(target)),
        marks=_marks(reference, target),
    )


def difference_bags(first: Bags, second: Bags) -> Bags:
    """Nine bags for the slots of the difference pass: what a changed cell held and holds, `same` for the others.

    As a bag has no order, a difference and its reverse are the same: the paper's q_c is symmetric in the images too.
    """
    return tuple(
        ("same",) if old == new else ("from", *old, "to", *new[:_PLACE_BEGIN])
        for old, new in zip(first, second, strict=True)
    )


def _with_twin(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one object made alike another in shape and, in three of four cases, colour."""
    first, second = (scene.occupied[int(index)] for index in rng.permutation(len(scene.occupied))[:2])
    model, twin = scene.cells[first], scene.cells[second]
    assert model is not None and twin is not None
    colour = model.colour if rng.integers(4) else twin.colour
    cells = list(scene.cells)
    cells[second] = twin._replace(shape=model.shape, colour=colour)
    return Scene(tuple(cells))


def _marks(reference: Scene, target: Scene) -> tuple[tuple[int, int, int], ...]:
    things = [reference.cells[cell] for cell in reference.occupied]
    rows = []
    for cell in range(CELLS):
        thing = reference.cells[cell]
        shape = sum(other is not None and thing is not None and other.shape == thing.shape for other in things)
        both = sum(
            other is not None and thing is not None and (other.shape, other.colour) == (thing.shape, thing.colour)
            for other in things
        )
        rows.append((int(thing != target.cells[cell]), int(shape == 1), int(both == 1)))
    return tuple(rows)
