"""Annotation files of the public benchmarks: errors name file, entry, key and remedy; texts stay as written."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cirray.core.errors import DataError, reason_of
from cirray.core.texts import decoded, parse_json
from cirray.data.benchmark import count_note
from cirray.data.kinds import split_suffix
from cirray.data.tables import is_null
from cirray.types import Query


class MissingFileError(DataError):
    """An annotation file that is not there (perhaps of a split that was not fetched)."""


@dataclass(frozen=True)
class Record:
    """One entry of an annotation file and its place."""

    path: Path
    place: str
    values: Mapping[str, Any]

    def fail(self, problem: str) -> NoReturn:
        """Raise a DataError that names this entry."""
        raise DataError(f"{str(self.path)!r}, {self.place}: {problem}")

    def get(self, key: str) -> Any:
        """Value of a key. Raises DataError with the keys there are, when it is missing."""
        if key not in self.values:
            self.fail(f"key {key!r} is missing; the entry has: {', '.join(map(str, self.values)) or '(nothing)'}.")
        return self.values[key]

    def lacks(self, keys: Sequence[str]) -> bool:
        """Whether one of these keys is null (or NaN), so that the entry names no such image."""
        return any(key in self.values and is_null(self.values[key]) for key in keys)

    def text(self, key: str) -> str:
        """A text exactly as written, blank ones too; null is a blank one."""
        return self.as_text(key, self.get(key))

    def id(self, key: str) -> str:
        """An id that is a text or a whole number, as text."""
        return self.as_id(key, self.get(key))

    def ids(self, key: str) -> tuple[str, ...]:
        """A list of ids."""
        return tuple(self.as_id(key, value) for value in self.list(key))

    def list(self, key: str) -> list[Any]:
        """A list."""
        value = self.get(key)
        if not isinstance(value, list):
            self.fail(f"key {key!r} has the value {value!r}, which is not a list.")
        return value

    def section(self, key: str) -> "Record":
        """A nested object."""
        return Record(self.path, f"{self.place}, {key}", self.mapping(key))

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A nested object's plain values."""
        value = self.get(key)
        if not isinstance(value, dict):
            self.fail(f"key {key!r} has the value {value!r}, which is not an object.")
        return value

    def number(self, key: str, value: Any) -> float:
        """A finite number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(f"key {key!r} has the value {value!r}, which is not a number.")
        return float(value)

    def as_text(self, key: str, value: Any) -> str:
        """A value as a text; null is a blank one."""
        if is_null(value):
            return ""
        if not isinstance(value, str):
            self.fail(f"key {key!r} has the value {value!r}, which is not a text.")
        return value

    def as_id(self, key: str, value: Any) -> str:
        """A value as an id."""
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            self.fail(f"key {key!r} has the value {value!r}, which is no id (a text or a whole number).")
        return str(value)


def load_json(path: Path) -> Any:
    """Content of a JSON file. Raises DataError: unreadable, not UTF-8 or not JSON."""
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise DataError(f"{str(path)!r} is not a JSON file in UTF-8 ({reason_of(error)}); fetch it again.") from None


def load_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are not blank, without blanks at the ends.

    Raises DataError: unreadable or not UTF-8.
    """
    try:
        lines = decoded(path.read_bytes()).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{str(path)!r} cannot be read as UTF-8 text: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, line.strip()


def image_paths(folder: Path, ids: Iterable[str]) -> dict[str, str]:
    """`<folder>/<id>` with the suffix found on disk, or `.jpg` where the image is missing.

    Raises DataError when two files are called by one of the ids.
    """
    found: dict[str, list[str]] = {}
    for entry in os.scandir(folder) if folder.is_dir() else ():
        stem, suffix = split_suffix(entry.name)
        if suffix:
            found.setdefault(stem, []).append(entry.name)
    paths = {}
    for image_id in ids:
        names = sorted(found.get(image_id, [f"{image_id}.jpg"]))
        if len(names) > 1:
            raise DataError(
                f"Image {image_id!r} may be {names[0]!r} or {names[1]!r} in {str(folder)!r}; keep one of them."
            )
        paths[image_id] = os.path.join(str(folder), names[0])
    return paths


class Folders:
    """The folders in which a benchmark's files may lie, searched in order."""

    def __init__(self, root: str, setting: str, *inner: str) -> None:
        """Take the data set's root and folders below it; "" is the root itself, which is searched alone without any.

        Raises DataError naming the config field, when the root does not exist.
        """
        self.root = Path(root).expanduser().absolute()
        if not self.root.is_dir():
            raise DataError(
                f"Data folder {str(self.root)!r} does not exist; set `{setting}.root` to where the files lie."
            )
        self._folders = [self.root / name for name in inner or ("",)]

    def has(self, name: str) -> bool:
        """Whether one of the folders holds the file."""
        return any((folder / name).is_file() for folder in self._folders)

    def file(self, name: str) -> Path:
        """The first file of a name. Raises MissingFileError naming where it was looked for."""
        found = next((folder / name for folder in self._folders if (folder / name).is_file()), None)
        if found is None:
            places = " or ".join(repr(str(folder / name)) for folder in self._folders)
            raise MissingFileError(f"There is no file {places}; put the published file there or correct the root.")
        return found

    def images(self, value: str) -> Path:
        """The image folder that a config names: below the root, or absolute."""
        return self.root / Path(value).expanduser() if value else self.root

    def records(self, name: str, unique: str = "") -> list[Record]:
        """Entries of a JSON file that is a list of objects; `unique` is a key whose ids must differ.

        Raises DataError for anything else than a list of objects, or naming two entries of one id.
        """
        path = self.file(name)
        values = load_json(path)
        if not isinstance(values, list):
            raise DataError(f"{str(path)!r} holds {_kind(values)}; a list of objects is expected.")
        for number, value in enumerate(values):
            if not isinstance(value, dict):
                raise DataError(f"{str(path)!r}, entry {number}: {_kind(value)} found where an object is expected.")
        records = [Record(path, f"entry {number}", value) for number, value in enumerate(values)]
        seen: dict[str, str] = {}
        for record in records if unique else ():
            found = record.id(unique)
            if found in seen:
                record.fail(f"{unique} {found!r} is used by {seen[found]} already; ids must be unique inside a split.")
            seen[found] = record.place
        return records

    def names(self, name: str) -> list[str]:
        """Names in a JSON file that is a list of different texts.

        Raises DataError for anything else, and for a name that appears twice.
        """
        path = self.file(name)
        values = load_json(path)
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            raise DataError(f"{str(path)!r} holds {_kind(values)}; a list of image ids is expected.")
        if len(set(values)) < len(values):
            double = next(value for number, value in enumerate(values) if value in values[:number])
            raise DataError(f"{str(path)!r} names the image {double!r} twice; fetch the file again.")
        return values


def complete(records: Sequence[Record], keys: Sequence[str], left: list[str]) -> list[Record]:
    """The entries that name all their images; the places of the others go to `left`."""
    left += [record.place for record in records if record.lacks(keys)]
    return [record for record in records if not record.lacks(keys)]


def null_note(left: Sequence[str]) -> tuple[str, ...]:
    """The note about entries left out by `complete`."""
    return count_note("entries left out because an image is null", left)


def blank_note(queries: Iterable[Query]) -> tuple[str, ...]:
    """The note about queries with a blank text."""
    blank = [query.query_id for query in queries if not query.modification.strip()]
    return count_note("queries with a blank text, kept as they are", blank)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(value), repr(value)[:40])
