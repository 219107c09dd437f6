"""Write a data set folder; `dataset.json` appears last, so that it means a complete one."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cirray.core.errors import DataError
from cirray.core.texts import parse_json

MARKER = "dataset.json"
FORMAT = 1

Row = dict[str, Any]


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One JSON object per line, UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def publish_folder(out: Path, name: str, config: Mapping[str, Any], write: Callable[[Path], Mapping[str, int]]) -> Row:
    """Fill `out` with what `write` puts into a folder, all or nothing, and return what `dataset.json` says.

    `write` fills `<out>.partial` and returns counts; then every entry moves into `out`, `dataset.json` last. A complete
    folder of the same name and config is left alone; a killed run goes on moving.

    Raises DataError when `out` holds another data set or entries of the same names.
    """
    out = Path(out).expanduser()
    key = {"name": name, "format": FORMAT, "config": dict(config)}
    existing = _read_marker(out)
    if existing is not None:
        if _same(existing, key):
            return existing
        raise DataError(f"{str(out)!r} already holds another data set; choose another folder or remove that one.")
    partial = partial_folder(out)
    summary = _read_marker(partial)
    if summary is None or not _same(summary, key):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        summary = {**key, "counts": _fill(partial, write)}
        _write_marker(partial, summary)
    _move(partial, out)
    return summary


def partial_folder(out: Path) -> Path:
    """Where a data set is written until it is complete."""
    return out.with_name(f"{out.name}.partial")


def _fill(partial: Path, write: Callable[[Path], Mapping[str, int]]) -> dict[str, int]:
    try:
        return dict(write(partial))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # also after Ctrl-C: nothing could go on from half a data set
        raise


def _same(summary: Row, key: Row) -> bool:
    return {name: summary.get(name) for name in key} == key


def _read_marker(folder: Path) -> Row | None:
    path = folder / MARKER
    if not path.is_file():
        return None
    try:
        summary = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} is damaged ({error}); remove that folder and write it again.") from None
    return summary if isinstance(summary, dict) else {}


def _write_marker(folder: Path, summary: Row) -> None:
    temporary = folder / f".{MARKER}"
    temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / MARKER)


def _move(partial: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    entries = sorted(partial.iterdir(), key=lambda path: (path.name == MARKER, path.name))
    taken = [path.name for path in entries if (out / path.name).exists()]
    if taken:
        shutil.rmtree(partial)
        raise DataError(f"{str(out)!r} already has {taken[0]!r} but no complete data set; choose another folder.")
    for path in entries:
        os.replace(path, out / path.name)
    partial.rmdir()
