"""The identity of a configuration (what decides a result), the places it reads, and how two stages differ."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cirray.core.fields import Role, Since, StageDigested, kind_of, names_place, role_of
from cirray.core.trees import leaves

_TOLD = 3
OWN = ("out", "root")
"""Fields for a run's own artifacts, which are not inputs."""


@dataclass(frozen=True)
class Reading:
    """One place that a run may read.

    `path`: its dotted field. `name`: distinguishes several places of one field. `place`: None for a section whose
    digest only its stage can compute. `kind`: of the artifact that must be there; None: any place.
    """

    path: str
    name: str
    place: str | None
    kind: str | None = None


def identity_of(config: BaseModel) -> dict[str, Any]:
    """Plain values of the fields that decide a result, at any depth.

    Without places, efforts, fields of a data format that is not read, and fields of a later version (`Since`) at their
    defaults; names of named places (`checkpoints: {mine: PLACE}`) are kept.
    """
    return dict(_deciding(config, config.model_dump(mode="json")))


def readings(config: Any, prefix: str = "", label: str = "") -> Iterator[Reading]:
    """Every place that a configuration names, except its own artifacts and efforts."""
    for name, field in type(config).model_fields.items():
        role, value, path = role_of(field), getattr(config, name), prefix + name
        if role is Role.EFFORT or name in OWN:
            continue
        for key, item in items(value):
            inner = " ".join(filter(None, (label, key)))
            if role is Role.PLACE and item:
                yield Reading(path, f"{path} {inner}".rstrip(), str(item), kind_of(field))
            elif isinstance(item, StageDigested):
                yield Reading(path, f"{path} {inner}".rstrip(), None)
            elif isinstance(item, BaseModel):
                yield from readings(item, f"{path}.", inner)


def named_places(config: BaseModel, own: tuple[str, ...] = OWN) -> Iterator[str]:
    """Every place that a run names at any depth, in data sets and efforts too, but for its own artifacts."""
    for name, field in type(config).model_fields.items():
        for _, item in items(getattr(config, name)) if name not in own else ():
            if isinstance(item, BaseModel):
                yield from named_places(item, ())
            elif names_place(field) and isinstance(item, str) and item:
                yield item


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The difference of two stages' keys (kind, identity, inputs) in words; empty if there is none."""
    if not all(isinstance(found.get(name), type(value)) for name, value in wanted.items()):
        return "its own description is damaged"
    if all(found[name] == value for name, value in wanted.items()):
        return ""
    there, now = (
        {"kind": key["kind"], **leaves(key["identity"]), **leaves(key["inputs"], "inputs.")} for key in (found, wanted)
    )
    names = [
        name
        for name in dict.fromkeys((*now, *there))
        if (name in now, now.get(name)) != (name in there, there.get(name))
    ]
    told = [f"{name}: {_word(there, name)} there, {_word(now, name)} now" for name in names[:_TOLD]]
    return "; ".join([*told, *([f"and {len(names) - _TOLD} more"] if len(names) > _TOLD else [])]) or "other sections"


def _deciding(value: Any, plain: Any) -> Any:
    if isinstance(value, BaseModel) and isinstance(plain, Mapping):
        unread = value.unread() if isinstance(value, StageDigested) else ()
        named = {name: (type(value).model_fields[name], getattr(value, name)) for name in plain if name not in unread}
        kept = {name: _deciding(item, plain[name]) for name, (field, item) in named.items() if _decides(field, item)}
        return kept | {
            name: sorted(item)
            for name, (field, item) in named.items()
            if role_of(field) is Role.PLACE and isinstance(item, Mapping)
        }
    if isinstance(value, Mapping) and isinstance(plain, Mapping):
        return {name: _deciding(value.get(name), item) for name, item in plain.items()}
    if isinstance(value, tuple | list) and isinstance(plain, list):
        return [_deciding(*pair) for pair in zip(value, plain, strict=True)]
    return plain


def _decides(field: FieldInfo, value: Any) -> bool:
    later = any(isinstance(item, Since) for item in field.metadata)
    usual = later and value == field.get_default(call_default_factory=True)
    return role_of(field) is Role.IDENTITY and not usual


def items(value: Any) -> Iterator[tuple[str, Any]]:
    """Leaves of lists and mappings at any depth, each with its path in words."""
    if isinstance(value, Mapping):
        pairs: Any = value.items()
    elif isinstance(value, tuple | list):
        pairs = enumerate(value)
    else:
        yield "", value
        return
    for key, item in pairs:
        for inner, found in items(item):
            yield " ".join(filter(None, (str(key), inner))), found


def _word(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "nothing"
