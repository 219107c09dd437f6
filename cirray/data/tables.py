"""Rows of a table file with their line numbers, and errors that name file, line, value and remedy."""

import bz2
import csv
import gzip
import io
import itertools
import lzma
import math
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from cirray.core.errors import DataError, reason_of, unknown_name
from cirray.core.texts import encoding_of, parse_json

_BATCH = 4096


@dataclass(frozen=True)
class TableRow:
    """One row and its place."""

    path: Path
    line: int
    values: dict[str, Any]
    unit: str = "line"

    @property
    def place(self) -> str:
        """`line 7`, or `row 7` where the file has no lines."""
        return f"{self.unit} {self.line}"

    def fail(self, problem: str) -> NoReturn:
        """Raise a DataError that names this row."""
        raise DataError(f"{str(self.path)!r}, {self.place}: {problem}")

    def lacks(self, columns: Sequence[str]) -> bool:
        """Whether one of these columns has no value: null in JSON or Parquet, or NaN."""
        return any(name in self.values and is_null(self.values[name]) for name in columns)

    def text(self, column: str, default: str | None = None) -> str:
        """A text in NFC with single spaces; an empty one becomes `default`.

        Raises DataError when the column is missing, empty without a default, or not text.
        """
        value = self.values.get(column)
        if is_null(value) or (isinstance(value, str) and not value.strip()):
            if default is not None:
                return default
            what = "is missing" if column not in self.values else "is empty"
            self.fail(f"column {column!r} {what}; give it a text. The row has: {', '.join(self.values)}.")
        value = plain_number(value)
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
        return tuple(TableRow(self.path, self.line, {column: item}, self.unit).text(column) for item in value)

    def number(self, column: str, default: float) -> float:
        """A number >= 0, or the default."""
        value: Any = self.values.get(column)
        if is_null(value) or value == "":
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


def is_null(value: Any) -> bool:
    """Whether a value is missing: null, or NaN, as pandas writes it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def plain_number(value: Any) -> Any:
    """An integer again, where pandas wrote a column with nulls as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def find_table(stem: Path, setting: str, others: Sequence[str] = ()) -> Path | None:
    """The one table called `stem`, with any readable suffix in upper or lower case; None if there is none.

    Errors name the config field `setting`. Files with the suffixes `others` (pictures) may have this name without being
    a table.

    Raises DataError: two tables of that name, or only a file of that name that is not read.
    """
    if not stem.parent.is_dir():
        return None
    start = f"{stem.name.lower()}."
    entries = sorted(
        path
        for path in stem.parent.iterdir()
        if path.name.lower().startswith(start) and path.suffix.lower() not in others
    )
    tables = [path for path in entries if path.name[len(stem.name) :].lower() in _ENDINGS and path.is_file()]
    if len(tables) > 1:
        raise DataError(f"Both {str(tables[0])!r} and {tables[1].name!r} exist; keep one or set `{setting}`.")
    if not tables and entries:
        raise DataError(
            f"{str(entries[0])!r} is not read: a table is a file that ends in {_KNOWN}. Write it as one of them, or "
            "rename it if it is none."
        )
    return tables[0] if tables else None


def read_rows(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    """Rows of a `.csv` or `.tsv` file with a header line, a `.jsonl` file with one object a line, a `.json` file that
    is a list of objects, or a `.parquet` file.

    Texts may be UTF-8, or UTF-16 with its mark. A row's line is its first one; rows of Parquet and JSON are counted
    from 1. Parquet is read some thousand rows at a time.

    Raises DataError: unreadable text, a bad line, or a required column that the header lacks.
    """
    ending = "".join(path.suffixes[-2:]).lower()
    ending = ending if ending in _ENDINGS else path.suffix.lower()
    if ending not in _ENDINGS:
        raise DataError(f"{str(path)!r} is none of {_KNOWN}; write it as one of them.")
    kind, packing = _ENDINGS[ending]
    try:
        if kind == ".parquet":
            yield from _read_parquet(path, required)
        else:
            with _PACKINGS[packing](path) as raw:
                head = raw.read(4)
                raw.seek(0)
                with io.TextIOWrapper(raw, encoding_of(head), newline="") as stream:
                    yield from _READERS[kind](path, stream, required)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{str(path)!r} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from None
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or reason_of(error)
        raise DataError(f"{str(path)!r} cannot be read: {reason}.") from None


def _read_csv(path: Path, stream: IO[str], required: Sequence[str], delimiter: str = ",") -> Iterator[TableRow]:
    first, skipped = stream.readline(), 0
    if first.lower().startswith("sep="):  # Excel's own line about the mark
        delimiter, first, skipped = first[4:5], stream.readline(), 1
    marks = [mark for mark in (delimiter, ";", "\t") if required[0] in (n.strip(' "') for n in _cells(first, mark))]
    records = _records(path, itertools.chain([first], stream), marks[0] if marks else delimiter, skipped)
    line, header = next(records, (1, []))
    header = [name.strip().lstrip("\ufeff") for name in header]
    if len({*header} - {""}) < len([name for name in header if name]):
        twice = next(name for name in header if name and header.count(name) > 1)
        raise DataError(f"{str(path)!r}, line {line}: column {twice!r} appears twice; keep one.")
    missing = [name for name in required if name not in header]
    if missing:
        have = ", ".join(header) or "(nothing)"
        raise DataError(f"{str(path)!r}, line {line}: column {missing[0]!r} is missing; the header has: {have}.")
    for line, cells in records:
        cells += [""] * (len(header) - len(cells))
        row = TableRow(path, line, {name: cell for name, cell in zip(header, cells, strict=False) if name})
        if any(cells[len(header) :]):
            row.fail(f"{len(header)} columns expected, more found; put texts with commas in quotes.")
        yield row


def _cells(line: str, delimiter: str) -> list[str]:
    return line.removesuffix("\n").removesuffix("\r").split(delimiter)


def _records(path: Path, lines: Iterator[str], delimiter: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """First line and cells of every record; a quoted cell may span several lines."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = skipped + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # A quote that is never closed is found at the end of the file; the fault is where its record begins.
            at = line if "end of data" in str(error) else skipped + reader.line_num
            raise DataError(f"{str(path)!r}, line {at}: not a CSV line ({error}).") from None
        if cells:
            yield line, cells


def _read_jsonl(path: Path, stream: IO[str], required: Sequence[str]) -> Iterator[TableRow]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line)
        except ValueError as error:
            detail = f"{getattr(error, 'msg', error)}: {line.strip()[:60]!r}"
            raise DataError(f"{str(path)!r}, line {number}: not JSON ({detail}).") from None
        yield _object(path, number, values, required)


def _read_json(path: Path, stream: IO[str], required: Sequence[str]) -> Iterator[TableRow]:
    """A list of objects, or one object a line, which some programs also call `.json`."""
    text = stream.read()
    try:
        values = parse_json(text)
    except ValueError as error:
        if not str(error).startswith("Extra data"):
            raise DataError(f"{str(path)!r} is not JSON ({reason_of(error)}); write a list of objects.") from None
        yield from _read_jsonl(path, io.StringIO(text), required)
        return
    if isinstance(values, dict) and set(required) <= set(values) and not isinstance(values[required[0]], dict | list):
        values = [values]
    if not isinstance(values, list):
        raise DataError(f"{str(path)!r} holds {str(values)[:60]!r}; a list of objects, one a row, is needed.")
    for number, value in enumerate(values, start=1):
        yield _object(path, number, value, required, "entry")


def _object(path: Path, number: int, values: Any, required: Sequence[str], unit: str = "line") -> TableRow:
    row = TableRow(path, number, values if isinstance(values, dict) else {}, unit)
    missing = [name for name in required if name not in row.values]
    if not isinstance(values, dict):
        row.fail(f"a JSON object is needed, found {str(values)[:60]!r}.")
    if missing:
        row.fail(f"column {missing[0]!r} is missing; the {unit} has: {', '.join(row.values) or '(nothing)'}.")
    return row


def _read_parquet(path: Path, required: Sequence[str]) -> Iterator[TableRow]:
    try:
        table = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"{str(path)!r} is not a Parquet file ({reason_of(error)}); write it again.") from None
    names = table.schema_arrow.names
    missing = [name for name in required if name not in names]
    if missing:
        raise DataError(f"{str(path)!r}: column {missing[0]!r} is missing; the file has: {', '.join(names)}.")
    line = 0
    try:
        for batch in table.iter_batches(batch_size=_BATCH):
            for values in batch.to_pylist():
                line += 1
                yield TableRow(path, line, values, "row")
    except pa.ArrowInvalid as error:
        raise DataError(f"{str(path)!r} is damaged after row {line} ({reason_of(error)}); write it again.") from None


_READERS: dict[str, Callable[[Path, IO[str], Sequence[str]], Iterator[TableRow]]] = {
    ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json, ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
}  # fmt: skip
_PACKINGS: dict[str, Callable[[Path], Any]] = {
    "": lambda path: path.open("rb"), ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open,
}  # fmt: skip
_ENDINGS = {kind + packing: (kind, packing) for kind in _READERS for packing in _PACKINGS} | {
    ".parquet": (".parquet", "")
}
"""Ending of a table's name -> kind of table, and how it is packed."""
_KNOWN = f"{', '.join((*_READERS, '.parquet'))} (text also with {', '.join(filter(None, _PACKINGS))})"
