"""A plan as text and as plain values. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class Line:
    """One figure: `unit` is "bytes", "count", "seconds", "per second", "operations" or "" (a text)."""

    name: str
    value: float | int | str | None
    unit: str = ""
    note: str = ""

    def shown(self) -> str:
        """The value for people."""
        if self.value is None:
            return "unknown"
        if isinstance(self.value, str):
            return self.value
        return _FORMS.get(self.unit, _number)(self.value)


@dataclass(frozen=True)
class PlanReport:
    """Sections of figures, and warnings that each name the setting to change."""

    title: str
    sections: Mapping[str, tuple[Line, ...]]
    warnings: tuple[str, ...] = ()
    as_json: bool = False

    @property
    def exit_status(self) -> int:
        """1 when something does not fit or is missing, else 0."""
        return int(bool(self.warnings))

    def value(self, name: str) -> Any:
        """The figure called `name`, in its unit. Raises KeyError: when there is none."""
        for lines in self.sections.values():
            for line in lines:
                if line.name == name:
                    return line.value
        raise KeyError(name)

    def text(self) -> str:
        """A table for people."""
        lines = [line for section in self.sections.values() for line in section]
        width = max(len(line.name) for line in lines) + 2
        reach = max(len(line.shown()) for line in lines)
        shown = [self.title]
        for heading, section in self.sections.items():
            shown += ["", heading]
            shown += [f"  {line.name:<{width}}{line.shown():>{reach}}  {line.note}".rstrip() for line in section]
        shown += ["", *(f"warning: {text}" for text in self.warnings)] if self.warnings else ["", "it fits"]
        return "\n".join(shown)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: bytes, counts, seconds."""
        return {
            "title": self.title,
            "sections": {
                heading: [{"name": i.name, "value": i.value, "unit": i.unit, "note": i.note} for i in section]
                for heading, section in self.sections.items()
            },
            "warnings": list(self.warnings),
        }


def size(value: float) -> str:
    """Bytes for people."""
    if value >= GIB:
        return f"{value / GIB:,.2f} GiB"
    return f"{value / MIB:,.2f} MiB" if value >= MIB / 100 else f"{value:,.0f} B"


def _time(value: float) -> str:
    if value >= 3600:
        return f"{value / 3600:,.1f} h"
    return f"{value / 60:,.1f} min" if value >= 60 else f"{value:,.3g} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:,.3g}"


def _operations(value: float) -> str:
    return f"{value / 1e12:,.2f} TFLOP" if value >= 1e10 else f"{value / 1e9:,.3g} GFLOP"


_FORMS: dict[str, Any] = {
    "bytes": size, "seconds": _time, "operations": _operations, "per second": lambda value: f"{_number(value)}/s",
}  # fmt: skip
