"""Sizes of a run's inputs: from existing artifacts, else from recipes beside its file that will write them.

Recipes beside a file are those in its folder and in the folders beside that one, as in `jobs/configs`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize, read_manifest
from cirray.core.config import Config, load_config, validate
from cirray.core.errors import CirrayError, ConfigError
from cirray.core.places import HOME, ROOT, placed
from cirray.core.trees import assigned, merged
from cirray.core.typed import parse_yaml
from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.mining.config import MiningConfig, PolicyConfig
from cirray.models.outlines import outline_tower, weightless
from cirray.models.towers.clip_tower import ClipTower
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.models.towers.places import find_tower
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.steps import Tokens

TRIPLETS = {"cirr": 28_225, "fashioniq": 18_000}
"""Training triplets as published (CIRR, table 2; Fashion IQ: 5,985 + 5,988 + 6,027)."""
IMAGES = {"cirr": 21_551, "fashioniq": 77_684}
"""Images as published: CIRR 16,939 + 2,297 + 2,315; FashionIQ's three categories together."""
TRAINING_IMAGES = {"cirr": 16_939, "fashioniq": 46_609}
"""Those of the training split, as published."""


@dataclass(frozen=True)
class RecipesBeside:
    """Recipes by what they write: artifact -> (folder and file, plain values)."""

    written: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: str | Path, root: str = HOME) -> "RecipesBeside":
        """The recipes beside a file, all below one root; unreadable ones are skipped."""
        found: dict[str, tuple[str, Mapping[str, Any]]] = {}
        own = Path(file).resolve().parent
        for path in sorted(own.glob("*.yaml")) + sorted(own.parent.glob("*/*.yaml")):
            try:
                text = path.read_text(encoding="utf-8")
                tree, runs = parse_yaml(text), runs_of(comment_of(text))
            except (OSError, ValueError, yaml.YAMLError):
                continue
            for words in runs.values() if isinstance(tree, dict) and isinstance(tree.get("out"), str) else ():
                run = placed(merged(tree, assigned([word for word in words if "=" in word])), root)
                found.setdefault(str(run["out"]), (f"{path.parent.name}/{path.name}", {**run, ROOT: root}))
        return cls(found)

    def recipe(self, place: str) -> tuple[str, Mapping[str, Any]] | None:
        """File name and plain values of the recipe that writes an artifact."""
        return self.written.get(place)

    def config(self, place: str, cls: type[Config]) -> Any | None:
        """That recipe as a config of some class; None when there is none, or it is for another verb."""
        found = self.recipe(place)
        try:
            return load_config(cls, found[1]) if found else None
        except ConfigError:
            return None


def tower_of(place: str, beside: RecipesBeside) -> tuple[VisionTower, str]:
    """The vision tower of a `towers` or `tower` field, without weights, and the source of its sizes.

    Call it under `weightless`.

    Raises ConfigError when neither the artifact nor a recipe that writes it is there, or its source is unknown.
    """
    if storage.exists(place):
        return outline_tower(str(find_tower(place))), place
    found = beside.recipe(place)
    if found is None:
        if place.startswith(("/", "~", ".")) or "://" in place:
            raise ConfigError(
                f"{place!r} is not there, and no recipe beside the run's file writes it. Give plan.patch_tokens and "
                "plan.patch_width (ViT-g at 224 px: 257 and 1408), or run the stage that makes it."
            )
        return outline_tower(place), place
    name, tree = found
    if "vision" not in tree and "towers" in tree:
        return tower_of(str(tree["towers"]), beside)
    tower = outline_tower(str(tree.get("vision", "asset")))
    if "clip_tokens" in tree and isinstance(tower, ClipTower):
        tower = tower.with_tokens(tree["clip_tokens"])
    return tower, f"recipe {name}"


def tokens_of(features: tuple[str, ...], towers: str, plan: PlanConfig, beside: RecipesBeside) -> Tokens:
    """Tokens of an image: as given, from a features artifact, or from the towers.

    Raises ConfigError when none is known.
    """
    if plan.patch_tokens and plan.patch_width:
        return Tokens(plan.patch_tokens, plan.patch_width, "plan.patch_tokens, plan.patch_width")
    for uri in features:
        if is_complete(uri):
            count, width = read_manifest(uri, "features").extra["shape"]
            return Tokens(int(count), int(width), uri)
    made = next((found for uri in features if (found := beside.recipe(uri))), None)
    place = towers
    if made and not (towers and storage.exists(towers)):
        place = str(made[1].get("tower", towers))
    if not place:
        raise ConfigError(
            f"{features[0]!r} is not there, and no recipe beside the run's file makes it. Give plan.patch_tokens and "
            "plan.patch_width (ViT-g at 224 px: 257 and 1408), or embed the images."
        )
    with weightless():
        tower, origin = tower_of(place, beside)
    return Tokens(plan.patch_tokens or tower.num_tokens, plan.patch_width or tower.width, origin)


def labelled_rows(data: DataConfig | None) -> tuple[int | None, str]:
    """Number of training triplets of a data set, and its source."""
    if data is None:
        return 0, "no data"
    try:
        return len(read_dataset(data).split("train")), "read"
    except (CirrayError, OSError):
        return TRIPLETS.get(data.format), "published count"


def image_count(data: DataConfig) -> tuple[int | None, str]:
    """Number of images of a data set, and its source."""
    try:
        return len(read_dataset(data).images), "read"
    except (CirrayError, OSError):
        return IMAGES.get(data.format), "published count"


def images_of(data: DataConfig | None) -> tuple[int | None, str]:
    """As `image_count`, if there is a data set."""
    return image_count(data) if data is not None else (None, "no data")


def triplet_count(uri: str, beside: RecipesBeside) -> int | None:
    """Rows of a triplets artifact, or the most that its recipe's pairs will give."""
    if is_complete(uri):
        return int(read_manifest(uri, "triplets").counts.get("triplets", 0))
    found = beside.recipe(uri)
    if found is None or "pairs" not in found[1]:
        return None
    pairs, ways = pair_count(str(found[1]["pairs"]), beside), found[1].get("directions", "both")
    return None if pairs is None else pairs * (2 if ways == "both" else 1)


def pair_count(uri: str, beside: RecipesBeside) -> int | None:
    """Pairs of an artifact, or as its recipe says."""
    if is_complete(uri):
        return int(read_manifest(uri, "pairs").counts.get("pairs", 0)) or None
    found = beside.recipe(uri)
    if found is None:
        return None
    mining = validate(MiningConfig, dict(found[1].get("mining", {})))
    data = str(dict(found[1].get("data", {})).get("format"))
    labelled, images = TRIPLETS.get(data), TRAINING_IMAGES.get(data)
    if mining.labelled or labelled is None or images is None:
        return labelled if mining.labelled else mining.count or None
    policy, images = mining.policy.settings, images if mining.triplet_images else IMAGES[data]
    most = policy.most_pairs(images, labelled) if isinstance(policy, PolicyConfig) else None
    return min(filter(None, (mining.count, most)), default=None)


def pairs_behind(uri: str, beside: RecipesBeside) -> str:
    """Place of the pairs that a triplets artifact, or its recipe, has texts of; the triplets themselves if unknown."""
    tree = read_manifest(uri, "triplets").config if is_complete(uri) else (beside.recipe(uri) or ("", {}))[1]
    return str(tree.get("pairs") or uri)


def description_of(place: str, folder: str) -> tuple[dict[str, Any], Path] | None:
    """`config.json` of a model in an existing artifact, and its folder."""
    if not is_complete(place):
        return None
    root = localize(place)
    for where in (root / folder, root):
        if (where / "config.json").is_file():
            return json.loads((where / "config.json").read_text()), where
    return None


def comment_of(text: str) -> list[str]:
    """The lines of the comment at a recipe's head, without `#`."""
    return [line.removeprefix("#") for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]


def runs_of(comment: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> assignments of every run that a comment describes; "": the recipe as it stands.

    A line `- WHAT:` names a run; the lines after it, indented by three spaces, assign.
    """
    runs: dict[str, tuple[str, ...]] = {"": ()}
    what = ""
    for line in comment:
        if line.startswith("   "):
            runs[what] = (*runs.get(what, ()), *line.split())
        elif line.startswith(" - "):
            what = line.removeprefix(" - ").rstrip(":")
        elif what and what not in runs:
            what = f"{what} {line.strip()}".rstrip(":")
    return runs
