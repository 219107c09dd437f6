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
    """Every instruction of every version."""
    return sorted(_table().values())


def _table() -> dict[str, str]:
    table: dict[str, str] = json.loads(files(__name__).joinpath("prompts.json").read_text(encoding="utf-8"))
    return table
