"""Versioned prompts: data files beside this module, one line per `name/version`."""

import json
from importlib.resources import files

from cirray.core.errors import ConfigError, unknown_name


def prompt(version: str) -> str:
    """The instruction filed under `name/version`.

    Raises:
        ConfigError: for an unknown one, with the known ones.
    """
    known = _table()
    if version not in known:
        raise ConfigError(unknown_name("prompt version", version, known))
    return known[version]


def all_prompts() -> list[str]:
    """Every instruction that the small language model is made to know; those of role slots are for large ones."""
    return sorted(_read("prompts.json").values())


def _table() -> dict[str, str]:
    return {**_read("prompts.json"), **_read("roles.json")}


def _read(name: str) -> dict[str, str]:
    table: dict[str, str] = json.loads(files(__name__).joinpath(name).read_text(encoding="utf-8"))
    return table
