"""Write the embedded world to disk in the open folder layout: labelled families, an unlabelled pool, a hard gallery.

Layout, under one root (only `scenes.jsonl` and `dataset.json` are special to this world):
`labelled/ pool/ gallery/` with PNG files, an image's id being its file name without suffix; `triplets.jsonl`,
`queries.jsonl`, `captions.jsonl` as `cirray.data.folder` reads them; `scenes.jsonl` with every image's scene, for
the judge alone; `dataset.json` with name, configuration and counts, written last.
"""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from cirray.core.environ import available_cores
from cirray.core.errors import DataError
from cirray.data.config import ShapesConfig
from cirray.data.shapes.grammar import caption, modification
from cirray.data.shapes.render import render
from cirray.data.shapes.scenes import (
    COLOURS,
    FULL,
    SHAPES,
    Edit,
    Palette,
    Scene,
    apply,
    feasible_kinds,
    inverse,
    pick,
    random_edit,
    random_scene,
)
from cirray.data.writing import Row, publish_folder, write_jsonl

_TABLES = ("triplets", "queries", "captions", "scenes")
_ATTEMPTS = 10_000
SCENES = "scenes.jsonl"
"""The table of every image's scene."""

Progress = Callable[[int, int], None]
Tables = dict[str, list[Row]]


@dataclass(frozen=True)
class Part:
    """One part of the world: its image folder, number of families, and tables."""

    name: str
    folder: str
    prefix: str
    families: int
    edits: int
    stream: int


@dataclass(frozen=True)
class Family:
    """A reference scene, edits of it and their results; ids follow `<prefix>-<family>-<member>`, member 0 first."""

    part: Part
    index: int
    reference: Scene
    edits: tuple[Edit, ...]
    targets: tuple[Scene, ...]

    @property
    def group(self) -> str:
        """Id of the family."""
        return f"{self.part.prefix}-{self.index:05d}"

    def members(self) -> list[tuple[str, Scene]]:
        """Image id and scene of every member, reference first."""
        return [(f"{self.group}-{number}", scene) for number, scene in enumerate((self.reference, *self.targets))]


def parts(config: ShapesConfig) -> tuple[Part, ...]:
    """The four parts in the order in which scenes are drawn: sizes of later ones never change earlier ones."""
    return (
        Part("gallery", "gallery", "gal", config.gallery_references, config.edits_per_reference, 1),
        Part("val", "labelled", "val", config.heldout_families, config.edits_per_family, 2),
        Part("train", "labelled", "lab", config.labelled_families, config.edits_per_family, 3),
        Part("pool", "pool", "pool", config.pool_families, config.edits_per_pool_family, 4),
    )


def families(config: ShapesConfig) -> Iterator[Family]:
    """Draw every family of the world; no scene occurs twice, within a part or across parts."""
    used: set[Scene] = set()
    palette = Palette(COLOURS[: config.colours], SHAPES[: config.shapes])
    for part in parts(config):
        for index in range(part.families):
            family = _draw(part, index, config.seed, used, palette)
            used.update((family.reference, *family.targets))
            yield family


def write_world(config: ShapesConfig, out: Path, progress: Progress | None = None) -> Row:
    """Write the world under `out` and return what `dataset.json` says.

    Same config and code, same bytes. A world already there with the same configuration is left alone; a present
    `dataset.json` means a complete one (see `publish_folder`).

    Raises DataError when `out` holds another data set or files of these names.
    """
    return publish_folder(out, "shapes", config.identity(), lambda folder: _write(config, folder, progress))


def read_scenes(root: Path) -> dict[str, Scene]:
    """Scene of every image of a world on disk. Raises DataError: when the folder has no readable `scenes.jsonl`."""
    path = Path(root) / SCENES
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"No scenes at {str(path)!r} ({error.strerror}); only shapes worlds can be judged.") from None
    try:
        rows = [json.loads(line) for line in lines]
        return {row["image"]: Scene.from_json(row["scene"]) for row in rows}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{str(path)!r} is not a scene table ({error}); write the world again.") from None


def fresh_scene(
    rng: np.random.Generator, forbidden: frozenset[Scene] | set[Scene], palette: Palette = FULL, **limits: int
) -> Scene:
    """A random scene that is neither forbidden nor reserved for pretraining; `limits` go to `random_scene`.

    Raises DataError when none is found, because nearly every scene is forbidden.
    """
    for _ in range(_ATTEMPTS):
        scene = random_scene(rng, **limits, palette=palette)
        if scene not in forbidden and not scene.reserved:
            return scene
    raise DataError(
        f"No unused scene found in {_ATTEMPTS} draws; ask for fewer families, or more objects, colours or shapes."
    )


def _draw(part: Part, index: int, seed: int, used: set[Scene], palette: Palette) -> Family:
    rng = np.random.default_rng([seed, part.stream, index])
    for _ in range(_ATTEMPTS):
        reference = fresh_scene(rng, used, palette)
        results = _draw_edits(reference, part.edits, rng, used, palette)
        if len(results) == part.edits:
            return Family(part, index, reference, tuple(results.values()), tuple(results))
    raise DataError(f"No family with {part.edits} unused edits found for {part.name} {index}; ask for fewer edits.")


def _draw_edits(
    reference: Scene, count: int, rng: np.random.Generator, used: set[Scene], palette: Palette
) -> dict[Scene, Edit]:
    """Edits by their distinct, unused results: every feasible kind once in random order, then any kind."""
    kinds = feasible_kinds(reference)
    order = [kinds[int(number)] for number in rng.permutation(len(kinds))]
    results: dict[Scene, Edit] = {}
    for attempt in range(20 * count):
        if len(results) == count:
            break
        kind = order[attempt] if attempt < len(order) else pick(rng, kinds)
        edit = random_edit(reference, rng, kind, palette)
        target = apply(edit, reference)
        if target not in used and not target.reserved:
            results.setdefault(target, edit)
    return results


def _write(config: ShapesConfig, root: Path, progress: Progress | None) -> dict[str, int]:
    for folder in {part.folder for part in parts(config)}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    total = sum(part.families * (part.edits + 1) for part in parts(config))
    tables: Tables = {name: [] for name in _TABLES}
    done = 0
    with ThreadPoolExecutor(available_cores()) as pool:  # half of the time is Pillow's, which lets others work
        for family in families(config):
            list(pool.map(partial(_write_image, family, config, root), *zip(*enumerate(family.members()), strict=True)))
            for name, rows in describe(family, config).items():
                tables[name] += rows
            done += len(family.targets) + 1
            if progress is not None:
                progress(done, total)
    for name, rows in tables.items():
        write_jsonl(root / f"{name}.jsonl", rows)
    counts = {"images": total, **{name: len(rows) for name, rows in tables.items()}}
    return counts | {f"{part.name}_families": part.families for part in parts(config)}


def _write_image(family: Family, config: ShapesConfig, root: Path, number: int, member: tuple[str, Scene]) -> None:
    image_id, scene = member
    seed = ((config.seed * 8 + family.part.stream) << 32) + (family.index << 8) + number
    image = render(scene, seed, config.image_size, config.clutter)
    image.save(root / family.part.folder / f"{image_id}.png", compress_level=1)


def describe(family: Family, config: ShapesConfig) -> Tables:
    """The family's rows by table. Each family has its own random stream: sizes elsewhere never change a text."""
    rng = np.random.default_rng([config.seed, family.part.stream, family.index, 1])
    members = family.members()
    tables: Tables = {"scenes": [{"image": image_id, "scene": scene.to_json()} for image_id, scene in members]}
    if family.part.name == "pool":
        if config.pool_captions:
            tables["captions"] = [{"image": name, "caption": caption(scene, rng)} for name, scene in members]
        return tables
    rows = [_row(family, number, rng, config.vague) for number in range(len(family.edits))]
    if family.part.name == "gallery":
        tables["queries"] = [{"query_id": f"q-{row['target']}", **row} for row in rows]
        return tables
    for row, reverse in zip(rows, _reverse_texts(family, rng, config.vague), strict=True):
        row |= {"split": family.part.name, "group": family.group}
        row |= {"reverse_modification": reverse} if config.reverse_texts else {}
    tables["triplets"] = rows
    if family.part.name == "train":
        tables["captions"] = [{"image": image_id, "caption": caption(scene, rng)} for image_id, scene in members]
    return tables


def _row(family: Family, number: int, rng: np.random.Generator, vague: float) -> Row:
    edit = family.edits[number]
    text = modification(family.reference, edit, rng, vague)
    return {
        "reference": f"{family.group}-0",
        "target": f"{family.group}-{number + 1}",
        "modification": text,
        "edit": edit.kind,
    }


def _reverse_texts(family: Family, rng: np.random.Generator, vague: float) -> list[str]:
    pairs = zip(family.edits, family.targets, strict=True)
    return [modification(target, inverse(edit, family.reference), rng, vague) for edit, target in pairs]
