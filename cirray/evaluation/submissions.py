"""Submission files of the CIRR and CIRCO test servers: build, check, and read back. No torch.

CIRR takes two files: `recall` (50 image names a query) and `recall_subset` (3 of the other five members); CIRCO takes
    one (50 image ids a query). `check` tests a file against all rules. Sources: docs/PAPERS.md#cirr,
    docs/PAPERS.md#circo.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cirray.core.errors import DataError, unknown_name
from cirray.core.texts import parse_json
from cirray.types import Query, Ranking

RECALL, SUBSET, CIRCO = "cirr-recall", "cirr-recall-subset", "circo"
SUBMISSIONS = (RECALL, SUBSET, CIRCO)
MAX_BYTES = 5_000_000
"""Largest file that CIRR's servers take, in bytes."""
SPECIAL = ("version", "metric")
"""Keys of a CIRR file that are not queries."""
_VERSION = "rc2"
_METRIC = {RECALL: "recall", SUBSET: "recall_subset"}
SUBSET_LENGTH = 3
"""Images of every subset that CIRR's server takes."""
_LENGTH = {RECALL: 50, SUBSET: SUBSET_LENGTH, CIRCO: 50}
_CIRR_QUERIES = {4148: "test1", 4181: "val"}
_CIRCO_QUERIES = {800: "test", 220: "val"}
_COCO_NAME = re.compile(r"(?:.*[/\\])?\d+(?:\.jpe?g)?")
"""CIRCO's image ids as people write them: numbers, padded numbers, file names."""
_NAME = re.compile(r"[^/\\]+(?<!\.png)(?<!\.jpg)(?<!\.jpeg)")


@dataclass(frozen=True)
class Checked:
    """Result of a check: the kind of file, its number of queries, and every broken rule."""

    kind: str
    queries: int
    problems: tuple[str, ...]

    def text(self, name: str) -> str:
        """One line about a file that keeps every rule."""
        return f"{name}: {self.kind}, {self.queries:,} queries, {_LENGTH[self.kind]} images each; it keeps every rule"


def build(kind: str, queries: Sequence[Query], lists: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The content of a submission file.

    `lists`: query id -> ranked image ids, best first: of the gallery, or of the subset for `cirr-recall-subset`. The
    reference in a CIRR list is dropped; CIRCO's stays (it is never a ground truth).

    Raises DataError for a query without a list, or a list that is too short.
    """
    _check_kind(kind)
    payload: dict[str, Any] = {} if kind == CIRCO else {"version": _VERSION, "metric": _METRIC[kind]}
    for query in queries:
        if query.query_id not in lists:
            raise DataError(
                f"Query {query.query_id!r} has no ranked list; a submission holds every query of its split."
            )
        dropped = None if kind == CIRCO else query.reference_id
        names = [name for name in lists[query.query_id] if name != dropped]
        if len(names) < _LENGTH[kind]:
            raise DataError(
                f"The list of query {query.query_id!r} holds {len(names)} images (reference left out); {kind} needs "
                f"{_LENGTH[kind]}. Rank with top_k={_LENGTH[kind]} or more."
            )
        best = names[: _LENGTH[kind]]
        payload[query.query_id] = [_number(name) for name in best] if kind == CIRCO else best
    return payload


def lists_of(rankings: Sequence[Ranking]) -> dict[str, tuple[str, ...]]:
    """Query id -> ranked ids."""
    return {ranking.query_id: ranking.ids for ranking in rankings}


def encode(payload: Mapping[str, Any]) -> bytes:
    """The file: JSON with the default separators, as the official example files have."""
    return json.dumps(payload).encode("ascii")


def decode(data: bytes, name: str) -> dict[str, Any]:
    """Read a file; repeated keys, of which JSON readers silently keep the last, are refused.

    Raises DataError: not JSON, no object, or a repeated key, naming it.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for at, key in enumerate(keys) if key in keys[:at])
            raise DataError(f"{name!r} holds the key {twice!r} twice; every query may be answered once.")
        return found

    try:
        payload = parse_json(data, once)
    except ValueError as error:
        raise DataError(f"{name!r} is no JSON file: {' '.join(str(error).split())[:120]}.") from None
    if not isinstance(payload, dict):
        raise DataError(f"{name!r} holds a {type(payload).__name__}; a submission is one object, query id -> list.")
    return payload


def detect(payload: Mapping[str, Any]) -> str:
    """Kind of a file by its content: special keys or image names mean CIRR, numbers mean CIRCO.

    Raises DataError when it looks like neither.
    """
    if "version" in payload or "metric" in payload:
        return SUBSET if payload.get("metric") == _METRIC[SUBSET] else RECALL
    lists = [value for value in payload.values() if isinstance(value, list) and value]
    if not lists:
        raise DataError("The file holds no ranked list, so it is no submission: query id -> list of images is needed.")
    first = lists[0]
    if all(_COCO_NAME.fullmatch(str(item)) for item in first):
        return CIRCO
    return SUBSET if len(first) <= _LENGTH[SUBSET] else RECALL


def kind_of(payload: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """Which of a server's kinds a file is: the only one, or by its metric or the length of its lists."""
    if len(kinds) == 1:
        return kinds[0]
    lists = [value for value in payload.values() if isinstance(value, list) and value]
    short = bool(lists) and len(lists[0]) <= _LENGTH[SUBSET]
    says = payload.get("metric")
    return SUBSET if says == _METRIC[SUBSET] or (says != _METRIC[RECALL] and short) else RECALL


def check(
    payload: Mapping[str, Any], size: int, kind: str = "", queries: Sequence[Query] = (),
    gallery: Sequence[str] = (),
) -> Checked:  # fmt: skip
    """Check a file against every rule of its server; an empty kind is detected.

    Without the split's queries only the number of keys is known, without a gallery names are not checked.

    Returns: The kind and the broken rules; none means that the server takes the file.
    """
    kind = kind or detect(payload)
    _check_kind(kind)
    lists = {key: value for key, value in payload.items() if kind == CIRCO or key not in SPECIAL}
    problems = [] if kind == CIRCO else _special_keys(payload, kind, size)
    problems += _keys(lists, kind, queries)
    by_key = {query.query_id: query for query in queries}
    allowed = {_plain(name, kind) for name in gallery}
    values = [problem for key, value in lists.items() for problem in _list(key, value, kind, by_key.get(key), allowed)]
    return Checked(kind, len(lists), tuple(problems + values))


def refuse(checked: Checked, name: str, shown: int = 5) -> None:
    """Raise when a check found anything. Raises DataError: with the first broken rules and their number."""
    if not checked.problems:
        return
    count, first = len(checked.problems), "; ".join(checked.problems[:shown])
    more = f"; and {count - shown:,} more" if count > shown else ""
    raise DataError(f"{name!r} is no valid {checked.kind} submission ({count:,} broken rules): {first}{more}.")


def _special_keys(payload: Mapping[str, Any], kind: str, size: int) -> list[str]:
    problems = []
    for key, wanted in (("version", _VERSION), ("metric", _METRIC[kind])):
        if payload.get(key) != wanted:
            problems.append(f"the key {key!r} must be {wanted!r}, found {payload.get(key)!r}")
    if size > MAX_BYTES:
        problems.append(f"the file has {size:,} bytes; the server takes at most {MAX_BYTES:,}")
    return problems


def _keys(lists: Mapping[str, Any], kind: str, queries: Sequence[Query]) -> list[str]:
    known = _CIRCO_QUERIES if kind == CIRCO else _CIRR_QUERIES
    problems = [f"the key {key!r} is no decimal number" for key in lists if not re.fullmatch(r"0|[1-9]\d*", key)]
    if queries:
        wanted = {query.query_id for query in queries}
        missing, strange = sorted(wanted - set(lists)), sorted(set(lists) - wanted)
        problems += [f"{len(missing):,} queries are missing, the first is {missing[0]!r}"] if missing else []
        problems += [f"{len(strange):,} keys are no query of the split, the first is {strange[0]!r}"] if strange else []
        return problems
    if len(lists) not in known:
        sizes = " or ".join(f"{count:,} ({split})" for count, split in known.items())
        problems.append(f"it answers {len(lists):,} queries; {sizes} are needed")
    elif kind == CIRCO and set(lists) != {str(number) for number in range(len(lists))}:
        problems.append(f"the keys must be exactly '0' to '{len(lists) - 1}'")
    return problems


def _list(key: str, value: Any, kind: str, query: Query | None, allowed: set[Any]) -> list[str]:
    if not isinstance(value, list):
        return [f"query {key!r} holds a {type(value).__name__} instead of a list"]
    problems = []
    if len(value) != _LENGTH[kind]:
        problems.append(f"query {key!r} has {len(value)} images; exactly {_LENGTH[kind]} are needed")
    wrong = [item for item in value if not _well_formed(item, kind)]
    if wrong:
        form = "whole numbers without padding" if kind == CIRCO else "names without folder or suffix"
        return [*problems, f"query {key!r} holds {wrong[0]!r}; images are given as {form}"]
    items = [_plain(item, kind) for item in value]
    if len(set(items)) != len(items):
        twice = next(item for at, item in enumerate(items) if item in items[:at])
        problems.append(f"query {key!r} holds {twice!r} twice")
    unknown = [item for item in items if allowed and item not in allowed]
    if unknown:
        problems.append(f"query {key!r} holds {unknown[0]!r}, which is not in the gallery")
    return problems + _against_query(key, items, kind, query)


def _against_query(key: str, items: Sequence[Any], kind: str, query: Query | None) -> list[str]:
    if query is None or kind == CIRCO:
        return []
    problems = []
    if query.reference_id in items:
        problems.append(f"query {key!r} holds its own reference {query.reference_id!r}")
    strange = [item for item in items if kind == SUBSET and query.subset and item not in query.subset]
    if strange:
        problems.append(f"query {key!r} holds {strange[0]!r}, which is not in its subset")
    return problems


def _well_formed(item: Any, kind: str) -> bool:
    if kind == CIRCO:
        return _is_number(item)
    return isinstance(item, str) and bool(_NAME.fullmatch(item))


def _is_number(item: Any) -> bool:
    if isinstance(item, bool) or not isinstance(item, int | str):
        return False
    return bool(re.fullmatch(r"0|[1-9]\d*", str(item)))


def _number(name: str) -> int:
    if not re.fullmatch(r"\d+", name):
        raise DataError(f"CIRCO's images are numbers; {name!r} is none. Use the COCO ids as image ids.")
    return int(name)


def _plain(item: Any, kind: str) -> Any:
    return int(item) if kind == CIRCO and re.fullmatch(r"\d+", str(item)) else item


def _check_kind(kind: str) -> None:
    if kind not in SUBMISSIONS:
        raise DataError(unknown_name("submission kind", kind, SUBMISSIONS))
