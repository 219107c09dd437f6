"""Sentences of the embedded world: modification texts, captions and cell phrases, all lower-case words.

The templates here are the whole language: `judge.py` compiles the same templates into its parser.
"""

from collections.abc import Iterator

import numpy as np

from cirray.data.shapes.scenes import COLOURS, PLACES, SHAPES, SIZES, Edit, Scene, Thing, difference, pick

TEMPLATES: dict[str, tuple[str, ...]] = {
    "recolour": (
        "make {object} {colour}",
        "paint {object} {colour}",
        "change the colour of {object} to {colour}",
        "{object} should be {colour}",
    ),
    "reshape": (
        "turn {object} into a {shape}",
        "make {object} a {shape}",
        "change the shape of {object} to a {shape}",
        "{object} should be a {shape}",
    ),
    "resize": (
        "make {object} {size}",
        "make {object} {comparative}",
        "change the size of {object} to {size}",
        "{object} should be {comparative}",
    ),
    "add": (
        "add a {thing} in the {place}",
        "put a {thing} in the {place}",
        "there should be a {thing} in the {place}",
        "in the {place} add a {thing}",
    ),
    "remove": ("remove {object}", "take {object} away", "delete {object}", "{object} is gone"),
    "move": (
        "move {object} to the {place}",
        "shift {object} to the {place}",
        "put {object} in the {place}",
        "{object} should be in the {place}",
    ),
    "swap": (
        "swap {object} and {partner}",
        "exchange {object} with {partner}",
        "let {object} and {partner} trade places",
    ),
}
"""Paraphrases per edit kind. Slots: object, partner, colour, shape, size, comparative, thing, place."""

NAMES = ("the object in the {place}", "the {place} object", "the {colour} {shape}", "the {shape}")
"""Ways to name an object."""

COMPARATIVE = {"small": "smaller", "large": "larger"}

CAPTION_PARTS = ("a {thing} in the {place}", "the {place} has a {thing}", "in the {place} a {thing}")
"""Ways to say that an object is in a place; a caption joins several by `and`."""


def phrase(thing: Thing | None) -> str:
    """An object's words, `large red star`, or `empty`."""
    return "empty" if thing is None else f"{thing.size} {thing.colour} {thing.shape}"


def phrases(scene: Scene) -> list[str]:
    """Nine phrases, one per cell in reading order."""
    return [phrase(thing) for thing in scene.cells]


def names(scene: Scene, cell: int) -> list[str]:
    """Every name that means the object in `cell` and no other of the scene."""
    thing = scene.cells[cell]
    assert thing is not None
    others = [scene.cells[index] for index in scene.occupied if index != cell]
    alike = [other for other in others if other is not None and other.shape == thing.shape]
    usable = [NAMES[0], NAMES[1]]
    if all(other.colour != thing.colour for other in alike):
        usable.append(NAMES[2])
    if not alike:
        usable.append(NAMES[3])
    return [name.format(place=PLACES[cell], colour=thing.colour, shape=thing.shape) for name in usable]


def name(scene: Scene, cell: int, rng: np.random.Generator) -> str:
    """One unique name: by place, by colour and shape, or by shape alone, each way equally likely."""
    usable = names(scene, cell)
    way = int(rng.integers(len(usable) - 1))
    return pick(rng, usable[:2]) if way == 0 else usable[way + 1]


def shape_name(scene: Scene, cell: int, _: np.random.Generator) -> str:
    """The name by shape alone, whatever else has that shape."""
    thing = scene.cells[cell]
    assert thing is not None
    return NAMES[3].format(shape=thing.shape)


def modification(scene: Scene, edit: Edit, rng: np.random.Generator, vague: float = 0.0) -> str:
    """A text for the edit of this scene: a random paraphrase with random, unique names.

    A share `vague` of the texts names objects only by shape, which may mean several.
    """
    template = pick(rng, TEMPLATES[edit.kind])
    if edit.kind == "add":
        return template.format(thing=phrase(edit.thing), place=PLACES[edit.cell])
    call = shape_name if vague and rng.random() < vague else name
    slots = {"object": call(scene, edit.cell, rng)}
    if edit.kind == "swap":
        slots["partner"] = call(scene, edit.other, rng)
        if rng.integers(2):
            slots = {"object": slots["partner"], "partner": slots["object"]}
    elif edit.kind == "move":
        slots["place"] = PLACES[edit.other]
    return template.format(
        **slots,
        colour=edit.value,
        shape=edit.value,
        size=edit.value,
        comparative=COMPARATIVE.get(edit.value, ""),
    )


def true_text(reference: Scene, target: Scene, rng: np.random.Generator) -> str | None:
    """A true modification text for an ordered pair, or None when the scenes are not a single edit apart."""
    edit = difference(reference, target)
    return None if edit is None else modification(reference, edit, rng)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """Every object with its place, in random order, joined by `and`."""
    order = [scene.occupied[int(index)] for index in rng.permutation(len(scene.occupied))]
    parts = (pick(rng, CAPTION_PARTS).format(thing=phrase(scene.cells[cell]), place=PLACES[cell]) for cell in order)
    return " and ".join(parts)


def vocabulary() -> list[str]:
    """Every word of the language, sorted."""
    return sorted({word for text in _every_word_source() for word in text.split() if not word.startswith("{")})


def _every_word_source() -> Iterator[str]:
    for templates in (*TEMPLATES.values(), NAMES, CAPTION_PARTS):
        yield from templates
    yield from (*COLOURS, *SHAPES, *SIZES, *PLACES, *COMPARATIVE.values(), "and", "empty")
