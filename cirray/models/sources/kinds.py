"""What a source is, in words, where it is not what was asked for."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as tables
from transformers.utils import cached_file

from cirray.core.places import is_hub_id
from cirray.models.sources.file_forms import what_else
from cirray.models.sources.files import CONFIG, read_json, unreachable, without_config
from cirray.models.sources.hub import at_home

DETECTORS = frozenset(tables.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)
DUAL_ENCODERS = frozenset(tables.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES)
FETCH = (
    "Put config.json, model.safetensors (or its shards), the preprocessor's and the tokenizer's files into one folder "
    "and name that folder, or run once with network access so that the hub's cache keeps a hub id's files."
)
"""What to do about a source that is not there."""
_USES: tuple[tuple[Iterable[str], str], ...] = (
    (DETECTORS, "finds objects in images"),
    (tables.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, "reads images and writes text"),
    (DUAL_ENCODERS, "compares images with texts"),
    (tables.MODEL_FOR_IMAGE_MAPPING_NAMES, "reads images"),
    (tables.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, "reads images"),
    (tables.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES, "reads videos"),
    (tables.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES, "reads speech"),
    (tables.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, "reads sound"),
    (tables.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "reads text"),
    (tables.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, "reads text and writes text"),
    (tables.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "writes text"),
)
"""Families of transformers and what they do; the first that has a family says it."""


def settings_of(source: str | Path) -> dict[str, Any]:
    """`config.json` of a folder or of a hub repository (fetched if the hub answers); empty where there is none.

    Raises ArtifactError when the file is damaged.
    """
    place = Path(at_home(source))
    if place.exists():
        return read_json(place / CONFIG) if (place / CONFIG).is_file() else {}
    if not is_hub_id(str(source)):
        return {}
    try:
        found = cached_file(str(source), CONFIG, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return {}
    return read_json(Path(found)) if found else {}


def model_type(source: str | Path) -> str:
    """Name of transformers' architecture in `config.json`; empty where there is none."""
    return str(settings_of(source).get("model_type", ""))


def is_absent(source: str | Path) -> bool:
    """Whether there is nothing: neither a folder or file here nor an answer of the hub."""
    return not Path(at_home(source)).exists() and not settings_of(source)


def what_is(source: str | Path) -> str:
    """What a source holds, as the second half of a sentence ("it is ...").

    Raises ArtifactError when its `config.json` is damaged.
    """
    place = Path(at_home(source))
    settings = settings_of(source)
    if settings:
        return _described(settings)
    if place.is_file():
        words = what_else(place)
        return f"it is {words}" if words else "it is a file; name the folder that holds it together with the others"
    return without_config(place) if place.is_dir() else unreachable(source)


def _described(settings: dict[str, Any]) -> str:
    family = str(settings.get("model_type", ""))
    if not family:
        return f"its {CONFIG} names no model_type"
    if family not in CONFIG_MAPPING and "auto_map" in settings:
        return "its classes are code of its own (auto_map in its JSON files), which is never run here"
    if family not in CONFIG_MAPPING:
        return f"its {CONFIG} names the model_type {family!r}, which the installed transformers does not know"
    use = next((words for families, words in _USES if family in families), "is something else")
    return f"it is a {family!r} of transformers, which {use}"
