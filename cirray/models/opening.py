"""Published weights as a retriever without training: image tower, text tower, and a composition without weights;
and which folders hold a model of this package: an artifact, an export, or the model's own folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import ArtifactError, ConfigError, unknown_name
from cirray.models.base import Retriever, torch_seed
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import DualEncoderRetriever, compositions
from cirray.models.fusion.config import DUAL_HEADS, JOINT, WEIGHTLESS, DualFusion, SumConfig
from cirray.models.sources.files import CONFIG, read_json
from cirray.models.sources.hub import at_home, at_hub
from cirray.models.sources.kinds import model_type
from cirray.models.sources.open_clip_files import is_open_clip_name
from cirray.models.towers.backbones import BACKBONES, dual_name, no_texts
from cirray.models.towers.hf_blip2 import VisionTower

_RAW_SUM = "mmret"
"""In the class names of BGE-VL's CLIPs, which sum vectors as the towers give them (docs/PAPERS.md#bge-vl)."""


def open_published(source: str, composition: str = "", weight: float | None = None) -> tuple[Retriever, VisionTower]:
    """A retriever over published weights, and its vision tower.

    Args:
        source: folder, hub id, or a name of open_clip's.
        composition: `sum`, `slerp`, `text`, `image` or `joint`; empty: `joint` for a model that reads picture and text
            together, else `sum`, of vectors of norm 1 but for BGE-VL.
        weight: the text's share, 0 to 1, of sum and slerp; None: the composition's usual one.

    Raises ArtifactError when it cannot be read, and ConfigError when it has no text tower, for a composition that it
    does not know, or one that has no weight.
    """
    place = at_home(source)
    place = place if is_open_clip_name(place) else at_hub(place)
    name = dual_name(place)
    if not name or (Path(place) / "config.json").is_file() and model_type(place).endswith("vision_model"):
        raise no_texts("model", source, "a checkpoint or export of cirray; or ")
    text = BACKBONES.get(name).load_text(place)
    fusion = fusion_of(composition, weight, SumConfig(unit=not _sums_raw(place)), compositions(text))
    tower = BACKBONES.get(name).load_tower(place, torch.float32)
    config = DualEncoderConfig(fusion=fusion, train_text=getattr(text, "trainable", True))
    with torch_seed(0):
        retriever = DualEncoderRetriever(config, text, name, tower.width)
    return retriever.eval(), tower


def own_source(source: str) -> tuple[Path, str] | None:
    """Folder and kind of what this package wrote: an artifact, an export or a model's own folder, here or on the hub;
    None for anything else.

    Raises ArtifactError for a hub id that is not in the cache and cannot be fetched.
    """
    place = source if is_open_clip_name(source) else at_hub(source)
    complete = is_complete(place)
    if not complete and not storage.is_local(place):
        return None
    try:
        return model_folder(localize(place) if complete else storage.local_path(place))
    except ArtifactError:
        return None


def recomposed(retriever: Retriever, composition: str, weight: float | None) -> Retriever:
    """A retriever with another composition; the same where none is asked for.

    Raises ConfigError when it is trained for the one that it has, or does not know the other one.
    """
    if not composition and weight is None:
        return retriever
    known = retriever.composition
    if not known.choices:
        raise ConfigError(
            f"This model composes by {known.name!r}, for which it was trained; leave composition and weight out."
        )
    assert isinstance(retriever, DualEncoderRetriever)
    own = retriever.config.fusion
    usual = own.settings if own.kind == "sum" else SumConfig(unit=True)
    fusion = fusion_of(composition or own.kind, weight, usual, known.choices)
    return retriever.changed({"fusion": fusion.to_dict()})


def fusion_of(composition: str, weight: float | None, usual: Any, known: Sequence[str] = WEIGHTLESS) -> DualFusion:
    """The fusion of a composition's name (the first of the known ones where there is none) and weight; `usual` are the
    settings of a sum.

    Raises ConfigError for an unknown composition, one that must be trained, or a weight where it has no effect.
    """
    name = composition or known[0]
    if name not in known:
        reason = f"The composition {name!r} must be trained first (cirray finetune). " if name in DUAL_HEADS else ""
        if name == JOINT:
            reason = f"Only a model that reads picture and text together composes by {JOINT!r}. "
        raise ConfigError(f"{reason}{unknown_name('composition without training', name, known)}")
    settings = usual.to_dict() if name == "sum" else {}
    if weight is not None:
        if name in ("text", "image", JOINT):
            said = "leave one of them out" if composition else "name composition=sum, or leave weight out"
            raise ConfigError(f"weight={weight:g} has no effect on the composition {name!r}; {said}.")
        settings["text_share"] = weight
    return DualFusion.model_validate({"kind": name, "settings": settings})


def _sums_raw(place: str) -> bool:
    path = Path(place) / CONFIG
    return path.is_file() and _RAW_SUM in str(read_json(path).get("auto_map", "")).lower()


def model_folder(folder: Path) -> tuple[Path, str]:
    """Folder of the model's files in an artifact, and their kind: "retriever" or "generator".

    Raises ArtifactError when there is none.
    """
    for place in (folder, folder / "model"):
        try:
            description = json.loads((place / "config.json").read_text())
        except (OSError, ValueError):
            continue
        if isinstance(description, dict) and "kind" in description:
            return place, "retriever" if "retriever" in description else "generator"
    raise ArtifactError(
        f"{str(folder)!r} holds no model of cirray's. Give a checkpoint or generator artifact, or an exported folder."
    )
