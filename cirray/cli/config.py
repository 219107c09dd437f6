"""`cirray config`: the values of a command line and their origins."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml

from cirray.cli.verb import VERBS, verb
from cirray.core.config import Config, Loaded, from_presets, given, layer_of, load_config
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.fields import Effort, Known, Place
from cirray.core.reading import plain
from cirray.core.trees import Layer, Parts
from cirray.core.typed import Typed

DEFAULT = "default"
_COLUMN = 56
"""Column of origins, for values that are not longer."""


class ConfigRun(Config):
    """Print the values of a command line; nothing is run."""

    verb: Annotated[str, Known(*VERBS)] = ""
    """Verb of the files; empty: a file's name begins with it, or it alone has their fields."""
    files: tuple[Place, ...] = ()
    """YAML files, the later over the earlier: `cirray config finetune A.yaml B.yaml`."""
    assignments: tuple[str, ...] = ()
    """Assignments over them; on the command line `path.to.field=value`, as for the verb itself."""
    only_given: Effort[bool] = False
    """Leave out defaults (`--given`)."""


def explained(run: ConfigRun) -> str:
    """The resolved tree as YAML, with the origin of every value as a comment beside it.

    Raises ConfigError as the verb itself, and when the verb is not clear.
    """
    from cirray.cli.main import configured

    name = verb_of(run.files, run.verb)
    loaded = configured(verb(name), [*run.files, *run.assignments])
    presets = from_presets(loaded.config)
    rows = [row for row in _rows(loaded, presets, loaded.config.to_dict(), ()) if row.said or not run.only_given]
    column = min(max((len(row.line) for row in rows if row.origin), default=0), _COLUMN)
    lines = [f"{row.line:<{column}}  # {row.origin}" if row.origin else row.line for row in rows]
    return "\n".join([f"# cirray {name}", *lines])


def verb_of(files: Sequence[str], named: str = "", among: Sequence[str] = VERBS) -> str:
    """The verb of some files: as named, or the beginning of a file's name, or the only one with their fields.

    Raises ConfigError when that is none or several, or none of `among`.
    """
    if named:
        if named not in among:
            raise ConfigError(unknown_name("verb", named, among))
        return named
    if not files:
        raise ConfigError(f"Name a verb or a file; the verbs are {', '.join(among)}.")
    begun = [[name for name in among if f"{Path(file).stem}-".startswith(f"{name}-")] for file in files]
    first = [max(names, key=len) for names in begun if names][:1]
    layers = [] if first else [layer_of(file) for file in files]
    found = first or [name for name in among if _takes(name, layers)]
    if len(found) != 1:
        raise ConfigError(
            f"No verb can be told from the names or fields of {' '.join(files)}; say verb=NAME with one of "
            f"{', '.join(found or among)}."
        )
    return found[0]


def _takes(name: str, layers: Sequence[Layer]) -> bool:
    try:
        return bool(load_config(verb(name).config_class(), layers))
    except ConfigError:
        return False


@dataclass(frozen=True)
class _Row:
    line: str
    origin: str = ""
    said: bool = True
    """Whether it holds anything but defaults."""


def _rows(loaded: Loaded[Any], presets: Mapping[Parts, str], tree: Mapping[str, Any], at: Parts) -> Iterator[_Row]:
    """Lines of all values and their sections."""
    indent = "  " * len(at)
    for name, value in tree.items():
        path, key = (*at, name), f"{indent}{_yaml(name)}:"
        if isinstance(value, Mapping) and value:
            inner = [*_rows(loaded, presets, value, path)]
            yield _Row(key, "", any(row.said for row in inner))
            yield from inner
            continue
        origin = _origin(loaded, presets, path)
        said = origin != DEFAULT
        if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield _Row(key, origin, said)
            lines = yaml.safe_dump(value, sort_keys=False, allow_unicode=True).splitlines()
            yield from (_Row(f"{indent}{line}", "", said) for line in lines)
        else:
            yield _Row(f"{key} {_yaml(value)}", origin, said)


def _origin(loaded: Loaded[Any], presets: Mapping[Parts, str], path: Parts) -> str:
    if path in presets:
        return f"preset {presets[path]}"
    if not given(loaded.config, path):
        return DEFAULT
    origin = loaded.said.origin(path) if path in loaded.said.origins else loaded.said.origin(".".join(path).split("."))
    return origin.name + "".join(f", over {_yaml(value)} of {name}" for value, name in reversed(origin.over))


def _yaml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, Typed):
        return value
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=2**20, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
