"""One configuration grammar: a frozen pydantic tree, YAML on disk, and `path.to.field=value` everywhere else."""

import copy
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from cirray.core.errors import ConfigError, unknown_name
from cirray.core.texts import decoded, is_whole

ConfigT = TypeVar("ConfigT", bound="Config")
WEIGHT = "weight"
"""The setting that a bare number stands for, where components stand by their names: `two_hop: 0.4`."""


class _Filled(dict[str, Any]):
    """A section with its place's defaults filled in; `said` is what was given of it."""

    said: Mapping[str, Any]


class Config(pydantic.BaseModel):
    """Base of every configuration node: frozen, unknown fields refused, defaults validated."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), use_attribute_docstrings=True
    )

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _over_defaults(cls, tree: Any, build: Any) -> Any:
        """A section that is given in part changes the section that stands as default here, not its class's defaults.

        `model_fields_set`, at any depth, holds what was given and not what was filled in.
        """
        if not isinstance(tree, Mapping):
            return build(tree)
        said, filled = (tree.said if isinstance(tree, _Filled) else tree), dict(tree)
        for name, field in cls.model_fields.items():
            given = filled.get(name)
            if isinstance(given, Mapping) and isinstance(field.default, Config):
                inner = said.get(name)
                filled[name] = _Filled(merged(field.default.model_dump(), given))
                filled[name].said = inner if isinstance(inner, Mapping) else {}
        made = build(filled)
        made.model_fields_set.intersection_update(said)
        return made

    def given(self) -> dict[str, Any]:
        """Plain JSON-ready values of the fields that were given, at any depth."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values of the whole resolved tree."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """The resolved tree as YAML, in declaration order."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @pydantic.model_validator(mode="before")
    @classmethod
    def _bare_values(cls, tree: Any) -> Any:
        """A list field takes one bare value (`gallery=FILE`), and an empty one (`gallery=`) as none."""
        if not isinstance(tree, Mapping):
            return tree
        lists = {name for name, field in cls.model_fields.items() if _is_list(field.annotation)}
        bare = [name for name in lists if isinstance(tree.get(name), str | int | float)]
        if not bare:
            return tree
        listed: Any = copy.copy(tree)
        for name in bare:
            listed[name] = [] if tree[name] == "" else [tree[name]]
        return listed

    def changed(self) -> dict[str, Any]:
        """Plain values of the fields that differ from their defaults, at any depth: what identifies a setting.

        A field that a later version adds at its default does not enter, and the order of fields does not matter.
        """
        return differing(self.to_dict(), type(self).model_construct().model_dump(mode="json"))


def given_beside(*names: str) -> Callable[[Any, Any, Any], Any]:
    """A wrap serializer of a section: what was given of it alone, where one of the fields `names` is set (or always).

    Such a section changes what another field brings, so a field at its default is not the same as one left out; plain
    values, and what is built of them again, keep the difference.
    """

    def dump(self: Any, section: Any, usual: Any) -> Any:
        alone = not names or any(getattr(self, name) for name in names)
        return section.given() if alone and isinstance(section, Config) else usual(section)

    return dump


def load_config(
    cls: type[ConfigT], source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Build `cls` from a YAML file or mapping, then apply `path.to.field=value` overrides in order.

    Args:
        cls: root of the tree.
        source: YAML path, mapping of plain values, or None for the defaults.
        overrides: assignments; the value is parsed as YAML (`train.lr=1e-3`, `index.factory=Flat`, `ks=[1,5]`).

    Raises:
        ConfigError: naming the file or path, the offending value and what would be accepted.
    """
    tree = _read_source(source)
    for assignment in overrides:
        set_by_path(tree, *parse_assignment(assignment))
    return validate(cls, tree)


def validate(cls: type[ConfigT], tree: Mapping[str, Any]) -> ConfigT:
    """Validate plain values into `cls`, turning pydantic's errors into sentences."""
    try:
        return cls.model_validate(dict(tree))
    except pydantic.ValidationError as error:
        raise ConfigError(" ".join(_sentence(cls, item) for item in error.errors())) from None


def differing(tree: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `tree` that `usual` has not, or has with another value; sections are compared field by field."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        default = usual.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = differing(value, default), {}
        if value != default:
            found[name] = value
    return found


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Split `path.to.field=value` into its path and its YAML-parsed value."""
    path, separator, raw = assignment.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"Override {assignment!r} is not of the form path.to.field=value.")
    if not is_whole(assignment):
        raise ConfigError(
            f"Override {assignment!r} holds bytes that are not UTF-8 text; type it in a terminal set to UTF-8, or put "
            "it into a config file in UTF-8."
        )
    if not raw.strip():
        return path.strip(), ""  # `init=` empties a text; `null` is written out
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"Override {assignment!r} has a value that is not valid YAML: {reason}.") from None
    return path.strip(), _number(value)


def set_by_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path inside nested plain mappings, creating the mappings on the way."""
    *parents, leaf = path.split(".")
    node = tree
    for key, part in zip(parents, path.split(".")[1:], strict=True):
        child = opened(node.get(key), {part: value})
        if child is not None and not isinstance(child, dict):
            raise ConfigError(f"Override path {path!r} goes through {key!r}, which holds the value {child!r}.")
        node[key] = {} if child is None else child
        node = node[key]
    if leaf == "kind" and node.get("kind") != value:
        node.pop("settings", None)  # another kind brings its own
    node[leaf] = value


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, `over` winning. A component of another kind (`{kind, settings}`) brings settings of its own."""
    result = dict(base)
    if over.get("kind", result.get("kind")) != result.get("kind"):
        result.pop("settings", None)
    for key, value in over.items():
        below = opened(result.get(key), value)
        result[key] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def opened(value: Any, over: Any) -> Any:
    """A component's short form written out where something is laid over its parts: `paired` as {kind: paired}."""
    if not isinstance(over, Mapping):
        return value
    if isinstance(value, str) and over.keys() <= {"kind", "settings"}:
        return {"kind": value}
    return weighed(value)


def weighed(value: Any) -> Any:
    """A component's bare weight written out, `0.4` as {weight: 0.4}; any other value as it is."""
    return {WEIGHT: value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of everything in nested mappings that is no mapping."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def _is_list(annotation: Any) -> bool:
    """Whether a field holds any number of values, `tuple[X, ...]`."""
    return typing.get_origin(annotation) is tuple and typing.get_args(annotation)[-1] is Ellipsis


def _number(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` as text; people mean a number."""
    if isinstance(value, str):
        try:
            return float(value) if any(char in value for char in "eE.") and value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _number(value)


def _read_source(source: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    if source is None:
        return {}
    if isinstance(source, Mapping):
        return {key: _copy(value) for key, value in source.items()}
    path = Path(source)
    try:
        tree = yaml.safe_load(decoded(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"Config file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"Config file {str(path)!r} is not valid YAML: {' '.join(str(error).split())}.") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"Config file {str(path)!r} must hold a mapping of fields, found {type(tree).__name__}.")
    return _numbers(tree)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return value


def _sentence(cls: type[pydantic.BaseModel], item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = (item.get("ctx") or {}).get("known") or known_fields(cls, item["loc"][:-1])
        section = ".".join(str(part) for part in item["loc"][:-1])
        names = [f"{section}.{name}" for name in known] if section else known
        return unknown_name(f"config field in section {section!r}" if section else "config field", path, names)
    message = item["msg"].removeprefix("Value error, ").rstrip(".")
    if item["type"] == "missing":
        return f"Config field {path!r} is required and was not given."
    if isinstance(item["input"], Mapping | pydantic.BaseModel):
        return f"Config section {path!r}: {message}." if path else f"Config: {message}."
    return f"Config field {path!r} has the value {item['input']!r}: {message}."


def known_fields(cls: type[pydantic.BaseModel], loc: Sequence[Any]) -> list[str]:
    """Names of the fields of a section, `loc` the way to it; without a component's own (`cirray.core.components`)."""
    node: Any = cls
    for part in loc:
        field = getattr(node, "model_fields", {}).get(part)
        node = (_model_of(field.annotation) or node) if field is not None else node
    return list(getattr(node, "model_fields", {}))


def _model_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    for arg in getattr(annotation, "__args__", ()):
        found = _model_of(arg)
        if found is not None:
            return found
    return None
