"""Plain trees: nested mappings of plain values, laid over one another, with each value's origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cirray.core.errors import ConfigError
from cirray.core.reading import plain
from cirray.core.texts import is_whole
from cirray.core.typed import Typed, collection

COMMAND_LINE = "the command line"
WEIGHT = "weight"
"""The setting that a bare number sets in a set of components: `two_hop: 0.4`."""
Parts = tuple[str, ...]
"""A dotted path, part by part."""


@dataclass(frozen=True)
class Layer:
    """One source of values: a file, the environment, the command line."""

    tree: Mapping[str, Any]
    origin: str = ""
    """Its name in errors; empty for values of a program."""


@dataclass(frozen=True)
class Origin:
    """Origin of a value, and the values it replaced by their origins, the latest last."""

    name: str
    over: tuple[tuple[Any, str], ...] = ()


@dataclass
class Stack:
    """Layers laid over one another, with the origin of every value."""

    tree: dict[str, Any] = field(default_factory=dict)
    origins: dict[Parts, Origin] = field(default_factory=dict)

    def add(self, layer: Layer) -> None:
        """Lay a layer over all before it: mappings merge (an empty one empties), other values replace."""
        self.tree = self._laid(self.tree, layer.tree, layer.origin, ())

    def origin(self, path: Sequence[Any]) -> Origin:
        """Origin of the value at a path or of a section around it; an unnamed one if there is none."""
        names = tuple(map(str, path))
        ends = (names[:end] for end in range(len(names), 0, -1))
        return next((self.origins[place] for place in ends if place in self.origins), Origin(""))

    def below(self, path: Sequence[Any]) -> list[str]:
        """Who said the values inside a section, each once."""
        names = tuple(map(str, path))
        return [*dict.fromkeys(item.name for place, item in self.origins.items() if place[: len(names)] == names)]

    def _laid(self, base: Mapping[str, Any], over: Mapping[str, Any], origin: str, at: Parts) -> dict[str, Any]:
        result = dict(base)
        if other_kind(base, over):
            result.pop("settings", None)
            self._forget((*at, "settings"))
        for name, given in over.items():
            path, value = (*at, name), written_out(_mapping(given, result.get(name)), result.get(name))
            if isinstance(value, Mapping) and value:
                below = opened(_mapping(result.get(name), value), value)
                result[name] = self._laid(self._mapped(path, below), value, origin, path)
                continue
            before = self.origins.get(path)
            older = (*before.over, (result[name], before.name)) if before and result.get(name) != value else ()
            self._forget(path)
            self.origins[path], result[name] = Origin(origin, older), value
        return result

    def _mapped(self, path: Parts, below: Any) -> Mapping[str, Any]:
        """The mapping under a mapping, or an empty one if there was another value."""
        said = self.origins.pop(path, None)
        if not isinstance(below, Mapping):
            self._forget(path)
            return {}
        if said is not None:
            self.origins |= {(*path, name): Origin(said.name) for name in below}
        return below

    def _forget(self, path: Parts) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, `over` winning. A component of another kind (`{kind, settings}`) replaces the settings."""
    result = dict(base)
    if other_kind(base, over):
        result.pop("settings", None)
    for name, value in over.items():
        value = written_out(value, result.get(name))
        below = opened(result.get(name), value)
        result[name] = merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return result


def other_kind(base: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    """Whether a component `{kind, settings}` becomes another one than before."""
    return "kind" in over and over["kind"] != base.get("kind")


def opened(value: Any, over: Any) -> Any:
    """A component's short form written out if something is laid over its parts: `paired` as {kind: paired}."""
    if not isinstance(over, Mapping):
        return value
    value = plain(value) if isinstance(value, Typed) else value
    if isinstance(value, str) and over.keys() <= {"kind", "settings"}:
        return {"kind": value}
    return weighed(value)


def written_out(value: Any, below: Any) -> Any:
    """A component's short form written out where it is laid over its parts, which then stay."""
    if not isinstance(below, Mapping) or not below or isinstance(value, Mapping):
        return value
    found = plain(value) if isinstance(value, Typed) else value
    if isinstance(found, str) and found and below.keys() <= {"kind", "settings"}:
        return {"kind": value}
    return {WEIGHT: value} if weighed(found) is not found else value


def weighed(value: Any) -> Any:
    """A component's bare weight written out, `0.4` as {weight: 0.4}; any other value as it is."""
    return {WEIGHT: value} if isinstance(value, int | float) and not isinstance(value, bool) else value


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of all leaves in nested mappings."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def differing(tree: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `tree` that `usual` lacks or has with another value; sections are compared field by field."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        default = usual.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            value, default = differing(value, default), {}
        if value != default:
            found[name] = value
    return found


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """The tree of `path.to.field=value` assignments, in their order, values as typed.

    Raises ConfigError for one that is no assignment, or no text.
    """
    tree: dict[str, Any] = {}
    for assignment in assignments:
        set_by_path(tree, *parse_assignment(assignment))
    return tree


def parse_assignment(assignment: str) -> tuple[str, Typed]:
    """Split `path.to.field=value` into its path and its value as typed.

    Raises ConfigError for one that is no assignment, or no text.
    """
    path, separator, value = assignment.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"Override {assignment!r} is not of the form path.to.field=value.")
    if not is_whole(assignment):
        raise ConfigError(
            f"Override {assignment!r} holds bytes that are not UTF-8 text; type it in a terminal set to UTF-8, or put "
            "it into a config file in UTF-8."
        )
    return path.strip(), Typed(value)


def set_by_path(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set a dotted path inside nested plain mappings, creating the mappings on the way.

    Raises ConfigError for a path through something that is no mapping.
    """
    *parents, leaf = path.split(".")
    node = tree
    for name, part in zip(parents, path.split(".")[1:], strict=True):
        child = opened(_mapping(node.get(name), {}), {part: value})
        if child is not None and not isinstance(child, Mapping):
            raise ConfigError(f"Override path {path!r} goes through {name!r}, which holds the value {child!r}.")
        node[name] = dict(child or {})
        node = node[name]
    if "kind" in node and other_kind(node, {leaf: value}):
        node.pop("settings", None)
    whole = written_out(value, node.get(leaf))
    node[leaf] = value if whole is value else merged(node[leaf], whole)


def _mapping(value: Any, beside: Any) -> Any:
    """A typed `{a: b}` as a mapping, if there was a mapping before."""
    found = collection(value) if isinstance(value, Typed) and isinstance(beside, Mapping) else None
    return found if isinstance(found, dict) else value
