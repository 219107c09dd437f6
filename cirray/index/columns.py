"""Columns of metadata: the types that filters know, and comparisons of a column with a value as Arrow expressions."""

import operator
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import DataError

Value = bool | int | float | str | date | datetime
"""A value as a filter says it."""
_COMPARE = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_LARGEST = 2**63


def kind_of(kind: pa.DataType) -> str:
    """What a column holds, in the filters' words: `numbers`, `texts`, `dates`, `true or false`; empty for others."""
    if pa.types.is_boolean(kind):
        return "true or false"
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return "numbers"
    if pa.types.is_string(kind):
        return "texts"
    return "dates" if pa.types.is_date(kind) or pa.types.is_timestamp(kind) else ""


def plain(table: pa.Table) -> pa.Table:
    """The table with the column types that filters and facets know, where they hold the same: whole numbers as int64,
    others as float64, texts as string, times in UTC without a zone; NaN becomes null.
    """
    columns = [_plain(column.combine_chunks() if column.num_chunks > 1 else column) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if pa.types.is_null(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        return column.cast(pa.string())
    if pa.types.is_integer(kind):
        return _whole_numbers(column)
    if pa.types.is_decimal(kind):  # by its digits: Arrow's own cast is off by one bit
        return column.cast(pa.string()).cast(pa.float64())
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_finite(column), column, pa.scalar(None, pa.float64()))
    if pa.types.is_timestamp(kind):
        return column.cast(pa.timestamp("us"), safe=False)
    return column.cast(pa.date32()) if pa.types.is_date64(kind) else column


def _whole_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return column.cast(pa.int64())
    except pa.ArrowInvalid:  # unsigned and above 2^63
        return column.cast(pa.float64(), safe=False)


def compared(column: pa.Field, sign: str, value: Value) -> pc.Expression:
    """A comparison of a column with a value. Raises DataError when the column holds something else, or has no order."""
    kind = kind_of(column.type)
    if kind == "true or false" and sign not in ("=", "!="):
        raise DataError(f"The column {column.name!r} holds true or false, which {sign!r} cannot order; use = or !=.")
    scalar = _scalar(column, value)
    return _COMPARE[sign](_field(column, scalar.type), scalar)


def within(column: pa.Field, values: Sequence[Value]) -> pc.Expression:
    """Whether a column's value is one of some; null for null. Raises DataError for a value of another type."""
    scalars = [_scalar(column, value) for value in values]
    kinds = {str(scalar.type): scalar.type for scalar in scalars}
    field = pc.field(column.name)
    found = None
    for name, kind in kinds.items():
        chosen = pa.array([scalar.as_py() for scalar in scalars if str(scalar.type) == name], kind)
        test = _field(column, kind).isin(chosen)
        found = test if found is None else found | test
    return pc.if_else(field.is_null(), pa.scalar(None, pa.bool_()), found)


def matched(column: pa.Field, how: str, value: Value) -> pc.Expression:
    """Whether a text column `contains` or `starts with` a text, in any case of its letters.

    Raises DataError for a column or a value that is no text.
    """
    if kind_of(column.type) != "texts":
        raise DataError(f"The column {column.name!r} holds {_held(column)}; {how!r} is for texts.")
    if not isinstance(value, str):
        _refuse(column, value)
    find = pc.match_substring if how == "contains" else pc.starts_with
    return find(pc.field(column.name), pattern=value, ignore_case=True)


def truth(column: pa.Field) -> pc.Expression:
    """A column of true or false as a test. Raises DataError when it holds something else."""
    if kind_of(column.type) != "true or false":
        raise DataError(f"The column {column.name!r} holds {_held(column)}; say what it is compared with.")
    return pc.field(column.name)


def read_number(text: str) -> int | float:
    """A number of a filter; whole ones stay whole up to 64 bits. Raises DataError for one that no float can hold."""
    if text.lstrip("+-").isdigit() and abs(int(text)) < _LARGEST:
        return int(text)
    if abs(value := float(text)) == float("inf"):
        raise DataError(f"The number {text!r} is too large.")
    return value


def read_date(text: str) -> date | datetime:
    """A date, or a time in UTC without its zone. Raises DataError for a day or a time that does not exist."""
    try:
        if len(text) == 10:
            return date.fromisoformat(text)
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found
    except (ValueError, OverflowError):
        raise DataError(f"{text[:40]!r} is no date; write it as 2025-01-31 or 2025-01-31T12:00.") from None


def _scalar(column: pa.Field, value: Value) -> pa.Scalar:
    """A value in the type that it is compared in: the column's own where that holds it."""
    kind = kind_of(column.type)
    if kind == "dates":
        return _moment(column, value)
    if kind == "texts" and isinstance(value, str):
        return pa.scalar(value, column.type)
    if kind == "true or false" and isinstance(value, bool):
        return pa.scalar(value)
    if kind == "numbers" and isinstance(value, int | float) and not isinstance(value, bool):
        whole = pa.types.is_integer(column.type) and value == int(value) and abs(value) < _LARGEST
        return pa.scalar(int(value), pa.int64()) if whole else pa.scalar(float(value), pa.float64())
    _refuse(column, value)


def _field(column: pa.Field, kind: pa.DataType) -> Any:
    """A column in the type of a comparison: its own, or a wider one, in which its order stays."""
    field = pc.field(column.name)
    return field if column.type == kind else field.cast(kind, safe=False)


def _moment(column: pa.Field, value: Value) -> pa.Scalar:
    if isinstance(value, str):
        value = read_date(value)
    if not isinstance(value, date):
        _refuse(column, value)
    if isinstance(value, datetime) or pa.types.is_timestamp(column.type):
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        return pa.scalar(moment, pa.timestamp("us"))
    return pa.scalar(value, pa.date32())


def _held(column: pa.Field) -> str:
    return kind_of(column.type) or f"{str(column.type)[:40]}, which filters do not compare"


def _refuse(column: pa.Field, value: Value) -> NoReturn:
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    shown = repr(value[:40]) if isinstance(value, str) else shown[:40]
    raise DataError(f"The column {column.name!r} holds {_held(column)}, and {shown} is something else.")
