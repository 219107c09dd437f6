"""The words after a verb: files, assignments, and the flags of the command line itself.

A project file is one for all verbs: what they share, and below `steps` the settings of each; `cirray init` writes one.
Of it a verb takes the shared values that it has fields for, and its own section over them.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cirray.cli.recipes import named_file
from cirray.cli.verb import FLAGS, Verb
from cirray.core.config import layer_of
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.trees import Layer, merged

STEPS = "steps"
"""The key by which a file is a project file."""
SHARED = ("root", "data", "limits", "device", "ray")
"""Fields that may stand beside `steps`; verbs that do not have them leave them out."""


def is_project(file: str) -> bool:
    """Whether a YAML file is a project file; False for one that cannot be read."""
    try:
        return STEPS in layer_of(file).tree
    except ConfigError:
        return False


def layer_for(file: str, name: str, fields: Collection[str], verbs: Collection[str]) -> Layer:
    """A YAML file's values for one verb; those of a file that is no project file are all for the verb.

    Raises ConfigError: an unreadable file; in a project file an unknown key, an unknown verb or a section that is none.
    """
    layer = layer_of(file)
    if STEPS not in layer.tree:
        return layer
    steps = layer.tree[STEPS] or {}
    if not isinstance(steps, Mapping):
        raise ConfigError(f"{file}: {STEPS!r} holds {steps!r}; it maps verbs to their settings.")
    for key in layer.tree.keys() - {STEPS, *SHARED}:
        raise ConfigError(f"{file}: {unknown_name(f'key beside {STEPS!r}', key, SHARED)}")
    for key, section in steps.items():
        if key not in verbs:
            raise ConfigError(f"{file}: {unknown_name(f'verb below {STEPS!r}', key, verbs)}")
        if section and not isinstance(section, Mapping):
            raise ConfigError(f"{file}: {STEPS}.{key} holds {section!r}; it maps fields of `cirray {key}` to values.")
    shared = {key: value for key, value in layer.tree.items() if key in SHARED and key in fields}
    return Layer(merged(shared, steps.get(name) or {}), layer.origin)


@dataclass(frozen=True)
class Words:
    """What a command line says of a verb's configuration, and of the run itself."""

    files: tuple[str, ...] = ()
    """YAML files, the later over the earlier."""
    assignments: tuple[str, ...] = ()
    """`path.to.field=value`, over the files."""
    flags: frozenset[str] = frozenset()
    """Those of `FLAGS`."""


def asked(arguments: Sequence[str]) -> str | None:
    """What `--help` in a command line asks for: a section's path, `all`, an empty text; None without `--help`."""
    for at, word in enumerate(arguments):
        if word.startswith("--help="):
            return word.partition("=")[2]
        if word in ("-h", "--help"):
            after = arguments[at + 1] if at + 1 < len(arguments) else ""
            return "" if "=" in after or after.startswith("-") or after.endswith((".yaml", ".yml")) else after
    return None


def read_words(chosen: Verb, given: Sequence[str]) -> Words:
    """The words after a verb by what they are: a recipe's name is its file, a word without a name its field's value.

    Raises ConfigError for a word that is nothing that the verb takes, or a name that no recipe has.
    """
    files, assignments, bare, flags = list[str](), list[str](), list[str](), set[str]()
    for word in _written_out(given, chosen.switches):
        file = _file(word) or named_file(chosen, word) if "=" not in word and not word.startswith("-") else ""
        if word in FLAGS:
            flags.add(word)
        elif file and chosen.takes_file and not is_project(file):
            assignments.append(f"{chosen.takes_file}={file}")
        elif file:
            files.append(file)
        else:
            (assignments if "=" in word else bare).append(word)
    assignments += _placed(chosen.positional.split(), bare)
    if not chosen.gathers[0]:
        return Words(tuple(files), tuple(assignments), frozenset(flags))
    own = chosen.config_class().model_fields
    foreign = [word for word in assignments if word.partition("=")[0].split(".")[0] not in own]
    kept = [word for word in assignments if word not in foreign]
    lists = zip(chosen.gathers, (files, foreign), strict=True)
    gathered = [f"{name}={json.dumps(items)}" for name, items in lists if items]
    return Words((), (*kept, *gathered), frozenset(flags))


def overrides_of(given: Sequence[str]) -> list[str]:
    """The assignments of a command line without a verb; `--field VALUE` and `--path.to.field=VALUE` are such.

    Raises ConfigError for a word that is neither a file nor one of these, or a flag without a value.
    """
    words = [word for word in _written_out(given, {}) if word not in FLAGS and not _file(word)]
    _placed((), [word for word in words if "=" not in word])
    return words


def _written_out(given: Sequence[str], switches: Mapping[str, str]) -> Iterator[str]:
    """The words with every switch and every flag that has a value as an assignment."""
    rest = iter(given)
    for word in rest:
        name, mark, value = word.removeprefix("--").partition("=")
        if mark and f"--{name}" in FLAGS and word.startswith("--"):
            raise ConfigError(f"Flag --{name} takes no value; write it alone.")
        if word in switches:
            yield switches[word]
        elif not word.startswith("--") or word in FLAGS:
            yield word
        elif (said := value if mark else next(rest, None)) is not None:
            yield f"{name.replace('-', '_')}={said}"
        else:
            raise ConfigError(f"Flag {word!r} needs a value: {word} VALUE or {name}=VALUE.")


def _file(word: str) -> str:
    return word if word.endswith((".yaml", ".yml")) and "=" not in word else ""


def _placed(names: Sequence[str], bare: Sequence[str]) -> list[str]:
    """Words without a name as values of a verb's fields, in order; one that ends with `...` takes all that are left.

    Raises ConfigError for a word that no field takes.
    """
    found = [f"{name}={word}" for name, word in zip(names, bare, strict=False) if not name.endswith("...")]
    rest = bare[len(found) :]
    if rest and len(found) < len(names):
        return [*found, f"{names[-1].removesuffix('...')}={json.dumps(list(rest))}"]
    if rest:
        raise ConfigError(f"Argument {rest[0]!r} is neither a .yaml file nor path.to.field=value nor --field VALUE.")
    return found
