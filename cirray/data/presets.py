"""Protocols of the method families as field values (docs/PAPERS.md#protocols-of-method-families)."""

from typing import Any

from cirray.core.errors import unknown_name

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "supervised": {
        "cirr": {"labels": "hard", "reference_rule": "remove"},
        "fashioniq": {"gallery": "original", "reference_rule": "keep", "captions": "clip4cir"},
        "circo": {"reference_rule": "keep", "text": "relative"},
    },
    "ptha": {
        "cirr": {"labels": "hard", "reference_rule": "remove"},
        "fashioniq": {"gallery": "original", "reference_rule": "keep", "captions": "clip4cir"},
        "circo": {"reference_rule": "remove", "text": "relative"},
    },
    "pseudo_word": {
        "cirr": {"labels": "hard", "reference_rule": "remove"},
        "fashioniq": {"gallery": "original", "reference_rule": "keep", "captions": "both_averaged"},
        "circo": {"reference_rule": "keep", "text": "relative"},
    },
    "pic2word": {
        "cirr": {"labels": "hard", "reference_rule": "remove"},
        "fashioniq": {"gallery": "original", "reference_rule": "keep", "captions": "reverse_and"},
        "circo": {"reference_rule": "keep", "text": "relative"},
    },
    "magiclens": {
        "cirr": {"labels": "hard", "reference_rule": "remove"},
        "fashioniq": {"gallery": "original", "reference_rule": "keep", "captions": "plain_and"},
        "circo": {"reference_rule": "keep", "text": "with_concept"},
    },
    "val": {"fashioniq": {"gallery": "val_split", "reference_rule": "remove", "captions": "each_alone"}},
    "cosmo": {"fashioniq": {"reference_rule": "remove", "captions": "both_separate"}},
    "covr": {
        "cirr": {"labels": "soft_subset", "reference_rule": "remove"},
        "fashioniq": {"reference_rule": "remove"},
        "circo": {"reference_rule": "remove"},
    },
}
"""Preset -> data format -> field -> value. Prompts such as "a photo of $ that ..." belong to the model, not here."""


def check_preset(name: str, data_format: str) -> None:
    """Refuse an unknown preset, or one that says nothing about a format. Raises ValueError with what there is."""
    if name not in PRESETS:
        raise ValueError(unknown_name("preset", name, PRESETS))
    if data_format not in PRESETS[name]:
        known = ", ".join(PRESETS[name])
        raise ValueError(f"it says nothing about format {data_format!r}, only about: {known}")
