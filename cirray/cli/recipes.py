"""Recipes, overlays and serve configs by name: `cirr/finetune-sprc`, `hardware/train-8gpu`, `production`.

They stand in `jobs/configs` and `serve_configs` of a checkout; an installed package holds them as data.
"""

import difflib
from functools import cache
from pathlib import Path

from cirray.cli.verb import VERBS, Verb
from cirray.core.errors import ConfigError

OVERLAYS = "hardware"
"""Folder of the files that change a recipe for other machines."""
_PACKAGE = Path(__file__).resolve().parents[1]


@cache
def recipes() -> dict[str, Path]:
    """Every recipe and overlay: `cirr/finetune-sprc` -> its file."""
    found = sorted(_folder("recipes", "jobs/configs").glob("*/*.yaml"))
    return {f"{path.parent.name}/{path.stem}": path for path in found}


@cache
def serve_configs() -> dict[str, Path]:
    """Every config file of the service: `production` -> its file."""
    return {path.stem: path for path in sorted(_folder("serve_configs", "serve_configs").glob("*.yaml"))}


def _folder(installed: str, checkout: str) -> Path:
    """A folder of the package's data; in a checkout, where that is not there, the one beside the package."""
    return _PACKAGE / installed if (_PACKAGE / installed).is_dir() else _PACKAGE.parent / checkout


def files_of(chosen: Verb) -> dict[str, Path]:
    """What a verb takes by name: its recipes and the overlays; of `cirray serve` the service's config files."""
    if chosen.takes_file:
        return serve_configs()
    if chosen.positional and not chosen.gathers[0]:
        return {}
    own = {name: path for name, path in recipes().items() if chosen.gathers[0] or verb_of(name) == chosen.name}
    return own | {name: path for name, path in recipes().items() if own and is_overlay(name)}


def verb_of(name: str) -> str:
    """The verb with which a recipe's file begins; empty for an overlay."""
    stem = "" if is_overlay(name) else f"{name.rpartition('/')[2]}-"
    return max((verb for verb in VERBS if stem.startswith(f"{verb}-")), key=len, default="")


def is_overlay(name: str) -> bool:
    """Whether a file changes recipes and is none itself."""
    return name.startswith(f"{OVERLAYS}/")


def named_file(chosen: Verb, word: str) -> str:
    """The file of a recipe (`cirray serve`: of a config file) that a word names; empty where words name other things.

    Raises ConfigError for a name that is none, with the near ones.
    """
    known = files_of(chosen)
    if not known or (chosen.positional and "/" not in word):
        return ""
    every = known | ({} if chosen.takes_file else recipes())
    if word in every:
        return str(every[word])
    close = [name for name in known if name.startswith(word)] or difflib.get_close_matches(word, known, n=3)
    hint = f" Did you mean {' or '.join(map(repr, close[:3]))}?" if close else ""
    raise ConfigError(
        f"cirray {chosen.name} has no recipe {word!r}.{hint} `cirray {chosen.name} --help recipes` lists them; a "
        "file's name ends with .yaml."
    )
