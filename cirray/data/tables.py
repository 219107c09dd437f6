"""Rows of a CSV, JSONL or Parquet file with their line numbers, and errors that name file, line, value and remedy."""

import csv
import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from cirray.core.errors import DataError, unknown_name

_BATCH = 4096


@dataclass(frozen=True)
class TableRow:
    """One row and where it stands."""

    path: Path
    line: int
    values: dict[str, Any]

    def fail(self, problem: str) -> NoReturn:
        """Raise a DataError that names this row."""
        raise DataError(f"{str(self.path)!r}, line {self.line}: {problem}")

    def text(self, column: str, default: str | None = None) -> str:
        """A text in NFC with single spaces, never empty unless `default` stands in for it.

        Raises:
            DataError: when the column is missing, empty without a default, or not text.
        """
        value = self.values.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            if default is not None:
                return default
            what = "is missing" if column not in self.values else "is empty"
            self.fail(f"column {column!r} {what}; give it a text. The row has: {', '.join(self.values)}.")
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if not isinstance(value, str):
            self.fail(f"column {column!r} has the value {value!r}, which is not a text.")
        return " ".join(unicodedata.normalize("NFC", value).split())

    def texts(self, column: str) -> tuple[str, ...]:
        """One text, or a JSON list of texts."""
        value = self.values.get(column)
        if not isinstance(value, list):
            return (self.text(column),)
        if not value:
            self.fail(f"column {column!r} is an empty list; name at least one.")
        return tuple(TableRow(self.path, self.line, {column: item}).text(column) for item in value)

    def number(self, column: str, default: float) -> float:
        """A number >= 0, or the default where there is none."""
        value = self.values.get(column)
        if value is None or value == "":
            return default
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = -1.0
        if not 0.0 <= number < float("inf"):
            self.fail(f"column {column!r} has the value {value!r}; a number of at least 0 is needed.")
        return number

    def choice(self, column: str, choices: Sequence[str], default: str) -> str:
        """One of a few words."""
        value = self.text(column, default)
        if value not in choices:
            self.fail(unknown_name(column, value, choices))
        return value


def read_rows(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    """Rows of a `.csv` file with a header line, a `.jsonl` file with one object per line, or a `.parquet` file.

    Parquet is read some thousand rows at a time; the line of a row is its number, from 1.

    Raises:
        DataError: unreadable or not UTF-8, a bad line, or a required column that is nowhere in the file's header.
    """
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{str(path)!r} is none of {', '.join(SUFFIXES)}; write it as one of them.")
    try:
        yield from _READERS[path.suffix.lower()](path, required)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not UTF-8 text ({error.reason} at byte {error.start}); save it so."
        ) from None


def _read_csv(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, restkey="", strict=True)
        try:
            header = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            missing = [name for name in required if name not in header]
            if missing:
                have = ", ".join(header) or "(nothing)"
                raise DataError(f"{str(path)!r}, line 1: column {missing[0]!r} is missing; the header has: {have}.")
            for values in reader:
                row = TableRow(path, reader.line_num, {key: value for key, value in values.items() if key})
                if values.get(""):
                    row.fail(f"{len(header)} columns expected, more found; put texts with commas in quotes.")
                yield row
        except csv.Error as error:
            raise DataError(f"{str(path)!r}, line {reader.line_num}: not a CSV line ({error}).") from None


def _read_jsonl(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                detail = f"{getattr(error, 'msg', error)}: {line.strip()[:60]!r}"
                raise DataError(f"{str(path)!r}, line {number}: not JSON ({detail}).") from None
            row = TableRow(path, number, values if isinstance(values, dict) else {})
            missing = [name for name in required if name not in row.values]
            if not isinstance(values, dict):
                row.fail(f"a JSON object is needed, found {line.strip()[:60]!r}.")
            if missing:
                row.fail(f"column {missing[0]!r} is missing; the line has: {', '.join(row.values) or '(nothing)'}.")
            yield row


def _read_parquet(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{str(path)!r} is not a Parquet file ({_reason(error)}); write it again.") from None
    names = table.schema_arrow.names
    missing = [name for name in required if name not in names]
    if missing:
        raise DataError(f"{str(path)!r}: column {missing[0]!r} is missing; the file has: {', '.join(names)}.")
    line = 0
    try:
        for batch in table.iter_batches(batch_size=_BATCH):
            for values in batch.to_pylist():
                line += 1
                yield TableRow(path, line, values)
    except pa.ArrowInvalid as error:
        raise DataError(f"{str(path)!r} is damaged after row {line} ({_reason(error)}); write it again.") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
SUFFIXES = tuple(_READERS)
"""Suffixes of tables, in the order in which they are looked for."""
