"""Protocols of the method families (our choice, after what each family's public code does): field values by name."""

from typing import Any

from cirray.core.errors import ConfigError, unknown_name
from cirray.data.config import DataConfig

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


def with_preset(config: DataConfig) -> DataConfig:
    """The config with its preset's values in every field of the format's section that still has its default.

    Raises:
        ConfigError: for an unknown preset, or one that says nothing about the format.
    """
    if not config.preset:
        return config
    if config.preset not in PRESETS:
        raise ConfigError(unknown_name("preset", config.preset, PRESETS))
    if config.format not in PRESETS[config.preset]:
        known = ", ".join(PRESETS[config.preset])
        raise ConfigError(f"Preset {config.preset!r} says nothing about format {config.format!r}, only about: {known}.")
    section = getattr(config, config.format)
    usual = type(section)()
    values = PRESETS[config.preset][config.format].items()
    changed = {name: value for name, value in values if getattr(section, name) == getattr(usual, name)}
    return config.model_copy(update={config.format: section.model_copy(update=changed)})
