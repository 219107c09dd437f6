"""Components in a configuration: one of a registry, `{kind: paired, settings: {ratio: 1.0}}`, or a set of them,
`{infonce: {label_smoothing: 0.1}, two_hop: 0.4}`. Each component's settings are fields of its own class.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic import SerializeAsAny, ValidationInfo
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from cirray.core.config import Config
from cirray.core.errors import ConfigError
from cirray.core.registry import Registry
from cirray.core.sentences import known_fields
from cirray.core.trees import weighed

FoundT = TypeVar("FoundT")


class Component(Config):
    """One component of a registry. Subclasses name the registry, and the kind that is used where none is given.

    The kind alone will do: `mixing: paired` is `mixing: {kind: paired}`.
    """

    registry: ClassVar[Registry[Any]]
    """Registry of the kinds."""
    kind: str
    """Name in the registry."""
    settings: SerializeAsAny[Config] = Config()
    """Fields of the kind's own settings."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, tree: Any) -> Any:
        return {"kind": tree} if isinstance(tree, str) else tree

    @pydantic.field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        return named(cls.registry.settings, kind)

    @pydantic.field_validator("settings", mode="plain")
    @classmethod
    def _own_class(cls, settings: Any, info: ValidationInfo) -> Config:
        if "kind" not in info.data:
            return Config()  # report the kind's own error
        return validated(filed(cls.registry.settings, info.data["kind"]), settings)


@dataclass(frozen=True)
class SetOf:
    """The metadata of a field that holds a set of components: `Annotated[dict[str, SerializeAsAny[Config]], SetOf(R)]`.

    A bare number is the setting `weight`, an empty value (null) the settings' defaults.
    """

    registry: Registry[Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        """Turn every value into settings of its component's class."""
        return core_schema.no_info_before_validator_function(self._each, handler(source))

    def _each(self, components: Any) -> Any:
        if not isinstance(components, Mapping):
            return components
        made, errors = dict[str, Config](), list[InitErrorDetails]()
        for name, settings in components.items():
            try:
                made[name] = validated(filed(self.registry.settings, name), weighed(settings), (name,))
            except pydantic.ValidationError as error:
                errors += _lines(error, ())
            except ValueError as error:
                errors.append(_line("value_error", str(error), (name,), settings))
        if errors:
            raise pydantic.ValidationError.from_exception_data("components", errors)
        return made


def filed(look_up: Callable[[str], FoundT], name: str) -> FoundT:
    """What a registry's `get` or `settings` finds under a name, for validators.

    Raises ValueError for an unknown name, with the known ones.
    """
    try:
        return look_up(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None


def named(look_up: Callable[[str], Any], name: str) -> str:
    """The name again where a registry has it, for validators. Raises ValueError as `filed`."""
    filed(look_up, name)
    return name


def validated(cls: type[Config], settings: Any, place: tuple[str, ...] = ()) -> Config:
    """Settings of one component's class; errors carry the path and, for an unknown field, the known ones.

    Raises ValidationError naming every field that does not fit.
    """
    if settings is None or type(settings) is Config:
        settings = {}
    if isinstance(settings, Config) and not isinstance(settings, cls):
        raise ValueError(f"settings of the class {type(settings).__name__} were given, {cls.__name__} is needed")
    try:
        return cls.model_validate(settings)
    except pydantic.ValidationError as error:
        raise pydantic.ValidationError.from_exception_data(cls.__name__, _lines(error, place, cls)) from None


def _lines(
    error: pydantic.ValidationError, place: tuple[str, ...], cls: type[Config] | None = None
) -> list[InitErrorDetails]:
    lines = []
    for item in error.errors():
        known = (item.get("ctx") or {}).get("known")
        if known is None and cls is not None and item["type"] == "extra_forbidden":
            known = known_fields(cls, item["loc"][:-1])
        lines.append(_line(item["type"], item["msg"], (*place, *item["loc"]), item["input"], known))
    return lines


def _line(kind: str, message: str, place: tuple[Any, ...], given: Any, known: Any = None) -> InitErrorDetails:
    more = {} if known is None else {"known": known}
    error = PydanticCustomError(kind, "{said}", {"said": message, **more})  # type: ignore[arg-type]
    return InitErrorDetails(type=error, loc=place, input=given)
