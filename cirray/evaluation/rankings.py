"""Read rankings back: a report's `rankings.parquet`, or any Parquet or JSON of query id -> ranked ids. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import DataError, reason_of, unknown_name
from cirray.evaluation.submissions import SPECIAL, decode

FILE = "rankings.parquet"
_NEEDED = ("query_id", "ids")


@dataclass(frozen=True)
class SavedRankings:
    """Ranked ids by query; `subsets` may be empty. `rows` are the file's other columns, if any; `metric` is that of a
    CIRR submission.
    """

    name: str
    lists: Mapping[str, tuple[str, ...]]
    subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metric: str = ""


def read_rankings(uri: str, row: str = "", seed: int | None = None) -> SavedRankings:
    """Rankings of one model and seed.

    Args:
        uri: a report artifact, a Parquet file with the columns query_id and ids [, row, seed, subset_ids, ...], or a
            JSON object query id -> list of image ids.
        row: model; empty takes the last one in the file.
        seed: seed; None takes the model's first.

    Raises DataError: unreadable, without the needed columns, an unknown row or seed, or a repeated query.
    """
    path = _file(uri)
    if path.suffix.lower() == ".json":
        return _from_json(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"The rankings {str(path)!r} cannot be read as Parquet: {reason_of(error)}.") from None
    missing = [name for name in _NEEDED if name not in table.column_names]
    if missing:
        raise DataError(f"The rankings {str(path)!r} have no column {missing[0]!r}; query_id and ids are needed.")
    return _chosen(table.to_pylist(), str(path), row, seed)


def read_lists(
    ranks: str, subsets: str, row: str = "", seed: int | None = None
) -> tuple[Mapping[str, Sequence[str]], Mapping[str, Sequence[str]]]:
    """Lists of the gallery and of the subsets, by the files' own metric; of each nothing where no file has it."""
    saved = read_rankings(ranks, row, seed) if ranks else SavedRankings("", {})
    if saved.metric == "recall_subset":
        return {}, saved.lists
    return saved.lists, read_rankings(subsets).lists if subsets else saved.subsets


def as_lists(payload: Mapping[str, Any], name: str) -> dict[str, tuple[str, ...]]:
    """Query id -> ids of a JSON object, ids as text; the special keys of a CIRR submission are skipped.

    Raises DataError naming the query whose value is no list of ids.
    """
    payload = {key: value for key, value in payload.items() if key not in SPECIAL}
    for key, value in payload.items():
        if not isinstance(value, list) or any(isinstance(item, bool | float | list | dict) for item in value):
            raise DataError(f"{name!r}: query {key!r} holds {str(value)[:60]!r}; a list of image ids is needed.")
    return {key: tuple(str(item) for item in value) for key, value in payload.items()}


def _file(uri: str) -> Path:
    path = localize(uri) if is_complete(uri) else storage.local_path(uri)
    if path.is_dir():
        path = path / FILE
    if not path.is_file():
        raise DataError(f"The rankings {str(path)!r} do not exist; give a report, a .parquet or a .json file.")
    return path


def _from_json(path: Path) -> SavedRankings:
    payload = decode(path.read_bytes(), str(path))
    return SavedRankings(path.stem, as_lists(payload, str(path)), metric=str(payload.get("metric", "")))


def _chosen(rows: Sequence[dict[str, Any]], path: str, row: str, seed: int | None) -> SavedRankings:
    names = list(dict.fromkeys(str(item.get("row", "")) for item in rows))
    if row and row not in names:
        raise DataError(f"{path!r}: {unknown_name('row', row, names)}")
    name = row or (names[-1] if names else "")
    own = [item for item in rows if str(item.get("row", "")) == name]
    seeds = list(dict.fromkeys(item.get("seed") for item in own))
    if seed is not None and seed not in seeds:
        raise DataError(f"{path!r} has no seed {seed} of row {name!r}. Known: {', '.join(map(str, seeds))}.")
    picked = seed if seed is not None else (seeds[0] if seeds else None)
    by_query: dict[str, dict[str, Any]] = {}
    for item in own:
        if item.get("seed") != picked:
            continue
        if str(item["query_id"]) in by_query:
            raise DataError(f"{path!r} holds query {item['query_id']!r} twice for row {name!r}; keep one.")
        by_query[str(item["query_id"])] = item
    return SavedRankings(
        name,
        as_lists({key: item["ids"] or [] for key, item in by_query.items()}, path),
        as_lists({key: item["subset_ids"] for key, item in by_query.items() if item.get("subset_ids")}, path),
        by_query,
    )
