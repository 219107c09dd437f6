"""A verb's fields as a tree, for help and completion."""

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from cirray.core.components import Component, SetOf
from cirray.core.config import Config
from cirray.core.fields import Known, Role, Shown, names_place, role_of
from cirray.core.registry import Registry

_WORDS = {
    bool: "true/false",
    int: "integer",
    float: "number",
    str: "text",
    datetime: "time",
    NoneType: "null",
    Any: "anything",
}

Tree = type[Config] | Config
"""A verb's class, or what it says with the package's own file read."""


@dataclass(frozen=True)
class Node:
    """One field at its place in a verb's tree."""

    path: str
    field: FieldInfo
    default: Any
    """Default; of a section a `Config`."""
    role: Role
    """Its own role, or that of the section around it."""
    inside: type[Config] | None
    """Class of the fields below it: a section's, or that of a list's or mapping's entries."""
    registry: Registry[Any] | None = None
    """Registry whose names it takes, or whose components it holds."""
    only: str = ""
    """The kind of a component that has this field."""
    owner: type[Config] | None = None
    """Class whose field it is; None for one of a set of components."""
    common: bool = False
    """Whether its class, or one that its class derives from, declares it `Common`."""
    elsewhere: bool = False
    """Whether it belongs to a kind that is not the default."""

    @property
    def name(self) -> str:
        """The last word of its path."""
        return self.path.rpartition(".")[2]

    @property
    def is_section(self) -> bool:
        """Whether its fields are set one by one, so that it has no value of its own."""
        return isinstance(self.default, Config)

    @property
    def is_kind(self) -> bool:
        """Whether it says which component of a registry is used."""
        return self.registry is not None and not self.inside

    @property
    def is_common(self) -> bool:
        """Whether people change it often: as declared, or the kind of a component that is not inside another."""
        return not self.elsewhere and (self.common or (self.is_kind and ".settings." not in self.path))

    @property
    def meaning(self) -> str:
        """First paragraph of its docstring, or that of its section's class, as one line."""
        own = field_doc(self.owner, self.name) if self.owner else ""
        text = own or self.field.description or (self.inside.__doc__ if self.inside else "") or ""
        return " ".join(text.split("\n\n")[0].split())

    @property
    def kind(self) -> str:
        """Its type in words: `number > 0`, `{cosine, step}`, `list of paths`."""
        if self.registry is not None:
            return "settings by name" if self.inside else f"{{{', '.join(self.registry.every_settings())}}}"
        return _kind(self.field.annotation, self.field.metadata, names_place(self.field))

    @property
    def choices(self) -> list[str]:
        """Its choices, if few: a `Literal`'s, true and false, known names, null."""
        if self.registry is not None:
            return list(self.registry.every_settings())
        return list(dict.fromkeys(_choices(self.field.annotation, self.field.metadata)))

    def children(self) -> "list[Node]":
        """The fields below it; of a list or mapping those of one entry, of a component the settings of each kind."""
        if self.registry is not None:
            return [self._component(*item) for item in self.registry.every_settings().items()] if self.inside else []
        if self.inside and issubclass(self.inside, Component):
            return self._of_component(self.inside)
        inner = _nodes(self.inside, f"{self.path}.", self.default, self.role) if self.inside else []
        return [replace(node, elsewhere=self.elsewhere) for node in inner]

    def _component(self, name: str, cls: type[Config]) -> "Node":
        """One of a set of components: a section with its settings."""
        default = self.default.get(name) if isinstance(self.default, Mapping) else None
        field = FieldInfo(annotation=cls, description=cls.__doc__)
        return Node(f"{self.path}.{name}", field, default or cls.model_construct(), self.role, cls)

    def _of_component(self, cls: type[Component]) -> "list[Node]":
        """Its kind, then the settings of every kind."""
        nodes = [node for node in _nodes(cls, f"{self.path}.", self.default, self.role) if node.name != "settings"]
        nodes = [replace(node, registry=cls.registry) if node.name == "kind" else node for node in nodes]
        for kind, settings in cls.registry.every_settings().items():
            place = self.default.settings if kind == getattr(self.default, "kind", "") else None
            found = _nodes(settings, f"{self.path}.settings.", place, self.role)
            nodes += [replace(node, only=kind, elsewhere=place is None) for node in found]
        return nodes


def roots(of: Tree) -> list[Node]:
    """The fields of a verb's own class, in the order of their declaration."""
    return _nodes(of if isinstance(of, type) else type(of), "", of, Role.IDENTITY)


def walk(nodes: list[Node]) -> Iterator[Node]:
    """These fields and, after each section, those inside it; fields of a list's entries are left out."""
    for node in nodes:
        yield node
        if node.is_section or node.registry is not None:
            yield from walk(node.children())


def find(of: Tree, path: str) -> Node | None:
    """The field at a dotted path, or None."""
    nodes = roots(of)
    while nodes:
        node = next((item for item in nodes if item.path == path or path.startswith(f"{item.path}.")), None)
        if node is None or node.path == path:
            return node
        nodes = node.children()
    return None


def _nodes(cls: type[Config], prefix: str, place: Any, around: Role) -> list[Node]:
    """The fields of a section; `place` is the section's default there, often unlike its class."""
    made = []
    for name, field in cls.model_fields.items():
        default = ... if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(place, cls):
            default = getattr(place, name)
        own = role_of(field)
        role = around if own is Role.IDENTITY else own
        registry = next((item.registry for item in field.metadata if isinstance(item, SetOf)), None)
        common = any(Shown.SHORT in declared.metadata for declared in _declared(cls, name))
        inside = _class_in(field.annotation)
        made.append(Node(prefix + name, field, default, role, inside, registry, owner=cls, common=common))
    return made


def _declared(cls: type[Config], name: str) -> Iterator[FieldInfo]:
    """A field as a class and those that it derives from declare it."""
    for base in cls.__mro__:
        if issubclass(base, Config) and name in base.model_fields:
            yield base.model_fields[name]


def _class_in(annotation: Any) -> type[Config] | None:
    """The first configuration class in an annotation: alone, in a union, list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for part in get_args(annotation) if (found := _class_in(part))), None)


def _kind(annotation: Any, metadata: Any = (), place: bool = False) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    known = next((item for item in metadata if isinstance(item, Known)), None)
    if known:
        return f"{{{', '.join(known.names)}}}"
    if origin is Annotated:
        return _kind(parts[0], annotation.__metadata__, place)
    if origin is Literal:
        return f"{{{', '.join(str(part) or repr('') for part in parts)}}}"
    if origin in (Union, UnionType):
        bounded = [_kind(part, () if part is NoneType else metadata, place) for part in parts]
        return " or ".join(dict.fromkeys(bounded))
    if origin is tuple and parts[-1] is Ellipsis:
        inner = _kind(parts[0], (), place)
        return f"list of {inner}{'s' if inner in ('path', 'text', 'integer', 'number', 'section') else ''}"
    if origin is tuple:
        return f"[{', '.join(_kind(part) for part in parts)}]"
    if origin is dict:
        return f"mapping of name: {_kind(parts[1], (), place)}"
    if _class_in(annotation):
        return "section"
    word = "path" if place and annotation is str else _WORDS.get(annotation, getattr(annotation, "__name__", "value"))
    return f"{word}{_bounds(metadata)}"


def _bounds(metadata: Any) -> str:
    low = next((item for item in metadata if isinstance(item, Ge | Gt)), None)
    high = next((item for item in metadata if isinstance(item, Le | Lt)), None)
    below = getattr(low, "ge", getattr(low, "gt", None))
    above = getattr(high, "le", getattr(high, "lt", None))
    if low and high:
        return f" in {'[' if isinstance(low, Ge) else '('}{below}, {above}{']' if isinstance(high, Le) else ')'}"
    if low:
        return f" {'>=' if isinstance(low, Ge) else '>'} {below}"
    return f" {'<=' if isinstance(high, Le) else '<'} {above}" if high else ""


def _choices(annotation: Any, metadata: Any = ()) -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    known = [name for item in metadata if isinstance(item, Known) for name in item.names]
    if known or origin is Annotated:
        return known or _choices(parts[0], annotation.__metadata__)
    if origin is Literal:
        return [str(part) for part in parts]
    if origin in (Union, UnionType) or (origin is tuple and parts[-1] is Ellipsis):
        return [choice for part in parts for choice in _choices(part)]
    return {bool: ["true", "false"], NoneType: ["null"]}.get(annotation, [])


def shown(value: Any) -> str:
    """A default as it would be typed: `null`, `true`, `[a, b]`."""
    if value is ...:
        return "(required)"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Config):
        return shown(value.given())
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {shown(item)}' for name, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    return str(value) if value != "" else "''"


def field_doc(cls: type, name: str) -> str:
    """The docstring of a field, of the first class in the order of inheritance that has one; empty without any."""
    return next((docs[name] for base in cls.__mro__ if name in (docs := _docs(base))), "")


@cache
def _docs(cls: type) -> dict[str, str]:
    """Field -> docstring, of the fields that a class itself declares."""
    found = _classes(cls.__module__).get(cls.__qualname__)
    if found is None:
        return {}
    pairs = zip(found.body, found.body[1:], strict=False)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairs
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module's source by their qualified names; none where there is no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return {}
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
