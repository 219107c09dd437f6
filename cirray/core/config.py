"""One configuration grammar: a frozen pydantic tree, YAML files laid over one another, and `path.to.field=value`.

Values are merged as plain trees (`cirray.core.trees`) and read by their fields' annotations (`cirray.core.reading`).
Every section knows which of its fields were given (`given`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic
import yaml
from pydantic_core import InitErrorDetails, PydanticCustomError

from cirray.core.errors import ConfigError
from cirray.core.identity import identity_of
from cirray.core.reading import Shape, read
from cirray.core.sentences import sentences
from cirray.core.texts import decoded
from cirray.core.trees import COMMAND_LINE, Layer, Parts, Stack, assigned, leaves, merged, other_kind, weighed
from cirray.core.typed import parse_yaml

ConfigT = TypeVar("ConfigT", bound="Config")
Source = str | Path | Mapping[str, Any] | Layer
"""A YAML file, or a mapping of values; a `Layer` is a mapping that errors can name."""


class _Section(dict[str, Any]):
    """The given values of a section, and the values `under` them, of its place."""

    under: Mapping[str, Any]


class Config(pydantic.BaseModel):
    """Base of every configuration node: frozen, unknown fields refused, defaults validated."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    @classmethod
    def from_preset(cls, values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Name of the values' preset ("" without one), and its values for fields that were not given.

        Args:
            values: the section's given values and those of its place, plain.
        """
        return "", {}

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _over_defaults(cls, tree: Any, build: Any) -> Any:
        """Given values over a preset's over those of the section's place over the class's defaults.

        `model_fields_set`, at any depth, holds what was given and nothing else.
        """
        if not isinstance(tree, Mapping):
            return build(tree)
        given, under = cls._read(tree), getattr(tree, "under", {})
        _, preset = cls.from_preset(merged(under, given))
        given |= {name: _above(given[name], preset[name]) for name in given.keys() & preset.keys()}
        under = merged(under, preset)
        made = build(cls._filled(given, under))
        made.model_fields_set.intersection_update(given)
        for name in made.model_fields_set ^ cls.model_fields.keys():
            made.__dict__[name] = _not_given(made.__dict__[name])
        return made

    @classmethod
    def _read(cls, tree: Mapping[str, Any]) -> dict[str, Any]:
        """Typed characters read as the fields' annotations say."""
        values, errors = dict[str, Any](), list[InitErrorDetails]()
        for name, value in tree.items():
            field = cls.model_fields.get(name)
            try:
                values[name] = value if field is None else read(field.annotation, value)
            except ValueError as error:
                fault = PydanticCustomError("unread", "{said}", {"said": str(error)})
                errors.append(InitErrorDetails(type=fault, loc=(name,), input=str(value)))
        if errors:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, errors)
        return values

    @classmethod
    def _filled(cls, given: Mapping[str, Any], under: Mapping[str, Any]) -> dict[str, Any]:
        """All values that differ from the class's defaults; a section given in part is laid over that of its place."""
        if other_kind(
            {"kind": cls.model_fields["kind"].default, **under} if "kind" in cls.model_fields else under, given
        ):
            under = {name: value for name, value in under.items() if name != "settings"}
        filled = {**under, **given}
        for name, field in cls.model_fields.items():
            inner, usual = given.get(name, {}), under.get(name, {})
            shape = Shape.of(field.annotation)
            if name in filled and isinstance(inner, Mapping) and isinstance(usual, Mapping) and shape.values_section:
                filled[name] = standing_over(usual, inner)
            if name not in filled or not (isinstance(inner, Mapping) and shape.section):
                continue
            if name not in given and not isinstance(usual, Mapping):
                continue
            default = field.default.model_dump(exclude_unset=True) if isinstance(field.default, Config) else {}
            filled[name] = _section(inner, merged(default, usual) if isinstance(usual, Mapping) else default)
        return filled

    def given(self) -> dict[str, Any]:
        """Plain JSON-ready values of the fields that were given, at any depth."""
        return self.model_dump(mode="json", exclude_unset=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready values of the whole resolved tree."""
        return self.model_dump(mode="json")

    def identity(self) -> dict[str, Any]:
        """Plain values of the fields that decide a result, at any depth; see `cirray.core.fields`."""
        return identity_of(self)

    def to_yaml(self) -> str:
        """The resolved tree as YAML, in declaration order."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)


def given(config: Config, path: str | Sequence[str]) -> bool:
    """Whether a value was given in a file, on the command line or in a call, and is not a default or a preset's.

    Args:
        config: any section.
        path: dotted path inside it, `data.fashioniq.captions`, or its parts; items of lists by their number.
    """
    node: Any = config
    for part in path.split(".") if isinstance(path, str) else path:
        if isinstance(node, Config) and part not in node.model_fields_set:
            return False
        inside = _inside(node)
        if part not in inside:
            return False
        node = inside[part]
    return True


def value_at(config: Config, path: Sequence[str]) -> Any:
    """The value at a path that exists."""
    node: Any = config
    for part in path:
        node = _inside(node)[part]
    return node


def from_presets(config: Config) -> dict[Parts, str]:
    """Path of every value that a preset filled in -> the preset's name."""
    return {path: name for path, name in _preset_values(config, ()) if not given(config, path)}


def _preset_values(node: Any, at: Parts) -> Iterator[tuple[Parts, str]]:
    """Path and preset of every value that a preset may set."""
    if isinstance(node, Config):
        name, values = node.from_preset(node.__dict__)
        yield from (((*at, *path.split(".")), name) for path in leaves(values))
    for part, item in _inside(node).items():
        yield from _preset_values(item, (*at, part))


def _inside(node: Any) -> dict[str, Any]:
    """Parts of a section, mapping or list by their names."""
    if isinstance(node, Config):
        return node.__dict__
    if isinstance(node, list | tuple):
        return {str(number): item for number, item in enumerate(node)}
    return dict(node) if isinstance(node, Mapping) else {}


def annotation_at(config: Config, path: str) -> Any:
    """Annotation of the field at a dotted path inside a configuration; `Any` if its class does not say."""
    node: Any = config
    annotation: Any = Any
    for part in path.split("."):
        if isinstance(node, Config):
            annotation = type(node).model_fields[part].annotation if part in type(node).model_fields else Any
            node = getattr(node, part, None)
        else:
            annotation = Shape.of(annotation).values or Any
            node = node.get(part) if isinstance(node, Mapping) else None
    return annotation


def given_beside(*names: str) -> Callable[[Any, Any, Any], Any]:
    """A wrap serializer of a section: only its given values, if one of the fields `names` is set (or always).

    Such a section changes values that another field sets, so a given default differs from a field left out; plain
    values keep the difference.
    """

    def dump(self: Any, section: Any, usual: Any) -> Any:
        alone = not names or any(getattr(self, name) for name in names)
        return section.given() if alone and isinstance(section, Config) else usual(section)

    return dump


@dataclass(frozen=True)
class Loaded(Generic[ConfigT]):
    """A configuration and the origins of its values."""

    config: ConfigT
    said: Stack


def load(cls: type[ConfigT], sources: Sequence[Source] = (), overrides: Sequence[str] = ()) -> Loaded[ConfigT]:
    """As `load_config`, with the origin of every value that was given."""
    stack = Stack()
    for source in sources:
        stack.add(source if isinstance(source, Layer) else layer_of(source))
    stack.add(Layer(assigned(overrides), COMMAND_LINE))
    return Loaded(_validated(cls, stack), stack)


def load_config(
    cls: type[ConfigT], source: Source | Sequence[Source] | None = None, overrides: Sequence[str] = ()
) -> ConfigT:
    """Build `cls` from YAML files or mappings, the later over the earlier, then `path.to.field=value` overrides.

    Args:
        cls: root of the tree.
        source: YAML path, mapping of plain values, several of them, or None for the defaults.
        overrides: assignments; a field's annotation says how the characters after `=` are read.

    Raises:
        ConfigError: naming the file or path, the offending value and what would be accepted.
    """
    if source is None or isinstance(source, str | Path | Mapping | Layer):
        return load(cls, [] if source is None else [source], overrides).config
    return load(cls, source, overrides).config


def validate(cls: type[ConfigT], tree: Mapping[str, Any]) -> ConfigT:
    """Validate plain values into `cls`, turning pydantic's errors into sentences."""
    return _validated(cls, Stack(dict(tree)))


def _validated(cls: type[ConfigT], stack: Stack) -> ConfigT:
    try:
        return cls.model_validate(stack.tree)
    except pydantic.ValidationError as error:
        raise ConfigError(sentences(cls, error, stack)) from None


def layer_of(source: str | Path | Mapping[str, Any]) -> Layer:
    """A file's values as typed.

    Raises:
        ConfigError: for a file that cannot be read or is no mapping.
    """
    if isinstance(source, Mapping):
        return Layer(source)
    name = str(source)
    try:
        tree = parse_yaml(decoded(Path(source).read_bytes()))
    except OSError as error:
        raise ConfigError(f"Config file {name!r} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        hint = '; a text that begins with @ stands in quotes, "@features"' if "'@'" in str(error) else ""
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(f"Config file {name!r} is not valid YAML: {reason}{hint}.") from None
    if tree is not None and not isinstance(tree, dict):
        kind = "text" if isinstance(tree, str) else type(tree).__name__
        raise ConfigError(f"Config file {name!r} must hold a mapping of fields, found {kind}.")
    return Layer(tree or {}, name)


def standing_over(usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Sections by name (or a bare weight, or a section that was built before): those given over the `usual` ones."""
    found: dict[str, Any] = {}
    for name, value in {**usual, **given}.items():
        said = (value.model_dump(exclude_unset=True) if isinstance(value, Config) else value) if name in given else {}
        below, said = weighed(usual.get(name, {})), {} if said is None else weighed(said)
        under = merged(below, getattr(said, "under", {})) if isinstance(below, Mapping) else {}
        found[name] = _section(said, under) if isinstance(said, Mapping) else said
    return found


def _section(given: Mapping[str, Any], under: Mapping[str, Any]) -> _Section:
    made = _Section(given)
    made.under = under
    return made


def _above(section: Any, preset: Any) -> Any:
    """An existing section with a preset's values for fields that were not given."""
    if not isinstance(section, Config):
        return section
    return type(section).model_validate(_section(section.model_dump(exclude_unset=True), preset))


def _not_given(value: Any) -> Any:
    """A default in which nothing counts as given, at any depth."""
    if isinstance(value, Config):
        inner = {name: _not_given(item) for name, item in value.__dict__.items()}
        if not value.model_fields_set and all(inner[name] is item for name, item in value.__dict__.items()):
            return value
        made = value.model_copy()
        made.__dict__.update(inner)
        made.model_fields_set.clear()
        return made
    if isinstance(value, tuple) and any(isinstance(item, Config) for item in value):
        return tuple(_not_given(item) for item in value)
    if isinstance(value, dict) and any(isinstance(item, Config) for item in value.values()):
        return {name: _not_given(item) for name, item in value.items()}
    return value
