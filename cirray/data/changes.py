"""What of a folder's files is new, changed or gone since it was last seen; an untouched file is not read again."""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_FRESH_NS = 2 * 10**9
"""Within this time of its last change a file may change once more without another date (FAT counts two seconds)."""


class Seen(NamedTuple):
    """A file as it was last seen."""

    name: str
    """Below the folder."""
    stamp: str
    """Size and dates (`stamp_of`); empty where they prove nothing."""
    digest: str
    """Of its bytes; empty where they could not be read."""


@dataclass(frozen=True)
class Changes:
    """A folder now, beside what it was. Every name is in exactly one of the five lists."""

    rows: tuple[Seen, ...]
    """Every file that is there now, in the order given."""
    same: tuple[str, ...]
    renamed: tuple[str, ...]
    """New names of files that are gone under another."""
    new: tuple[str, ...]
    changed: tuple[str, ...]
    gone: tuple[str, ...]

    def told(self) -> str:
        """In words: `713 pictures: 700 as before, 12 new, 1 changed, 3 gone`."""
        named = {"as before": self.same, "renamed": self.renamed, "new": self.new, "changed": self.changed}
        parts = [f"{len(names):,} {word}" for word, names in {**named, "gone": self.gone}.items() if names]
        return f"{len(self.rows):,} pictures: {', '.join(parts)}"


def compare(
    files: Sequence[tuple[str, str]], before: Iterable[Seen], digests: Callable[[Sequence[str]], Sequence[str]]
) -> Changes:
    """Compare files (names below the folder and paths, as `list_pictures` gives them) with what was there before.

    A file whose size and dates are as before keeps its digest unread. The others are read, so a copy or a touched file
    counts as the same; unreadable ones have an empty digest.
    """
    known = {row.name: row for row in before}
    now = [Seen(name, stamp_of(path), "") for name, path in files]
    untouched = {row.name for row in now if _is_untouched(row, known.get(row.name))}
    unread = [(name, path) for name, path in files if name not in untouched]
    read = dict(zip((name for name, _ in unread), digests([path for _, path in unread]), strict=True))
    rows = [row._replace(digest=known[row.name].digest if row.name in untouched else read[row.name]) for row in now]
    same, changed, fresh = list[str](), list[str](), list[Seen]()
    for row in rows:
        if row.name not in known:
            fresh.append(row)
        elif row.digest == known[row.name].digest:
            same.append(row.name)
        else:
            changed.append(row.name)
    gone = {name: row.digest for name, row in known.items() if name not in {row.name for row in rows}}
    renamed = _renamed(fresh, gone)
    new = tuple(row.name for row in fresh if row.name not in renamed)
    left = tuple(name for name in gone if name not in renamed.values())
    return Changes(tuple(rows), tuple(same), tuple(renamed), new, tuple(changed), left)


def stamp_of(path: str) -> str:
    """Size and dates of a file, links followed: equal as long as nothing has written to it.

    The date of the last change of its entry is among them, which no program can set. Empty where there is no file, or
    one so fresh that it may change again within the clock's tick.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _FRESH_NS:
        return ""
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _is_untouched(now: Seen, before: Seen | None) -> bool:
    return before is not None and now.stamp == before.stamp != "" and before.digest != ""


def _renamed(fresh: Sequence[Seen], gone: dict[str, str]) -> dict[str, str]:
    """New name -> the gone name of a file with the same bytes, each gone one once."""
    by_digest: dict[str, list[str]] = {}
    for name, digest in gone.items():
        if digest:
            by_digest.setdefault(digest, []).append(name)
    return {row.name: by_digest[row.digest].pop(0) for row in fresh if by_digest.get(row.digest)}
