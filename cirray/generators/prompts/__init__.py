"""Versioned prompts: data files beside this module, one line per `name/version`."""

import json
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

from pydantic import AfterValidator

from cirray.core.components import named
from cirray.core.errors import ConfigError, reason_of, unknown_name


def prompt(version: str) -> str:
    """The instruction called `name/version`. Raises ConfigError: for an unknown one, with the known ones."""
    return find_prompt(version, "prompt version", __name__, ("prompts.json", "roles.json"))


def is_version(text: str) -> bool:
    """Whether a text is the name of an instruction."""
    return text in {**_read(__name__, "prompts.json"), **_read(__name__, "roles.json")}


def own_words(text: str) -> str:
    """An instruction as it is kept: the name of a version, or the words themselves; of a file, its words.

    Raises:
        ConfigError: for what is no version, no readable file, and not several words.
    """
    if is_version(text) or len(text.split()) > 1:
        return text.strip()
    if not Path(text).expanduser().is_file():
        prompt(text)
    try:
        words = " ".join(Path(text).expanduser().read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise ConfigError(f"The prompt file {text!r} cannot be read ({reason_of(error)}).") from None
    if len(words.split()) < 2:
        raise ConfigError(f"The prompt file {text!r} holds {words!r}; an instruction has at least two words.")
    return words


def find_prompt(version: str, kind: str, package: str, names: Sequence[str] = ("prompts.json",)) -> str:
    """The text called `name/version` in a package's tables; `kind` is its name in errors.

    Raises ConfigError for an unknown one, with the known ones.
    """
    known = {at: text for name in names for at, text in _read(package, name).items()}
    if version not in known:
        raise ConfigError(unknown_name(kind, version, known))
    return known[version]


def version_in(kind: str, package: str) -> AfterValidator:
    """For a field that names a text of a package's table, as `find_prompt` finds it."""
    return AfterValidator(partial(named, lambda name: find_prompt(name, kind, package)))


def all_prompts() -> list[str]:
    """Every instruction that the small language model is trained on; those with role slots are for large models."""
    return sorted(_read(__name__, "prompts.json").values())


def _read(package: str, name: str) -> dict[str, str]:
    table: dict[str, str] = json.loads(files(package).joinpath(name).read_text(encoding="utf-8"))
    return table
