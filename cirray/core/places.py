"""Where things lie: a run has one root, and `@name` is the artifact of that name below it.

Any other place is a path or URI as it is. A file whose own name begins with `@` is written `./@name`.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from cirray.core.config import Config, ConfigT
from cirray.core.fields import Place, names_place

RunT = TypeVar("RunT", bound="Run")
HOME = "~/cirray/quickstart"
"""Where artifacts lie unless something else is said."""
ROOT = "root"
"""The field of a run that says where `@name` lies."""
Path = tuple[str | int, ...]
_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


class Run(Config):
    """A configuration whose places may be `@name`: they are resolved as soon as it is validated."""

    root: Place = HOME
    """Folder or URI below which `@name` is the artifact of that name; empty inside another run: that run's."""

    @model_validator(mode="after")
    def _resolved(self: RunT) -> RunT:
        if self.root.startswith("@"):
            raise _refused((ROOT,), self.root, "a root is a path or URI, and no artifact below one")
        if self.root:
            self.__dict__.update(_changed(self, self.root, ()))
        return self


def is_hub_id(text: str, bare: bool = False) -> bool:
    """Whether a text may be a hub id, `OWNER/NAME`; `bare`: or one of the old ones without an owner."""
    return _HUB_ID.fullmatch(text) is not None and (bare or "/" in text)


def place_below(root: str, place: str) -> str:
    """`@name` as the artifact of that name below a root; any other place as it is.

    Raises ValueError for `@` without a name, or with an empty part in it.
    """
    if not place.startswith("@"):
        return place
    name = place[1:]
    if not all(name.split("/")):
        raise ValueError("after `@` stands the name of an artifact below root, such as @features or @cirr/features")
    base, mark, query = root.partition("?") if "://" in root else (root, "", "")
    return f"{base.rstrip('/')}/{name}{mark}{query}"


def at_root(section: ConfigT, root: str) -> ConfigT:
    """A section of a run that was built by itself, with every `@name` in it resolved."""
    found: ConfigT = _below(section, root, False, ())
    return found


def placed(tree: Any, root: str) -> Any:
    """Plain values with every text `@name` in them resolved, for those whose class is not known."""
    return _below(tree, root, True, ())


def _changed(config: Config, root: str, at: Path) -> dict[str, Any]:
    """The fields of a section that hold an `@name` at any depth, with it resolved."""
    found = dict[str, Any]()
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(config, Run) and name == ROOT:
            if not value:
                found[name] = root
            continue
        if (new := _below(value, root, names_place(field), (*at, name))) is not value:
            found[name] = new
    return found


def _below(value: Any, root: str, is_place: bool, at: Path) -> Any:
    """A value with every `@name` in it resolved; the value itself where there is none."""
    if isinstance(value, Config):
        changed = _changed(value, root, at)
        if not changed:
            return value
        copy = value.model_copy()  # keeps which fields were given
        copy.__dict__.update(changed)
        return copy
    if isinstance(value, str) and is_place and value.startswith("@"):
        try:
            return place_below(root, value)
        except ValueError as error:
            raise _refused(at, value, str(error)) from None
    pairs = list(
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple | list) else ()
    )
    new = {key: _below(item, root, is_place, (*at, key)) for key, item in pairs}
    if all(new[key] is item for key, item in pairs):
        return value
    return new if isinstance(value, Mapping) else type(value)(new.values())


def _refused(at: Path, value: str, reason: str) -> ValidationError:
    fault = PydanticCustomError("place", "{reason}", {"reason": reason})
    return ValidationError.from_exception_data("Run", [InitErrorDetails(type=fault, loc=at, input=value)])
