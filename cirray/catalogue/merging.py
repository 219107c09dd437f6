"""Upkeep of a gallery's table: which rows are outdated, and small files written together.

LanceDB's own `optimize` takes every file of less than a million rows, so that each call writes the whole of a usual
gallery again, thumbnails included. Lance itself, which takes a size, is asked instead.
"""

import json
import time
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

NUMBER = "_rowid"
_SIZES, _MANY = (65_536, 4_096), 16
"""Rows from which on a file is large, and from which on it is middling. Small ones are merged at once, middling ones
when there are so many of them, large ones never."""
_OLD = timedelta(minutes=2)
_OVERTAKEN = "commit conflict"
"""What Lance says of a merge whose files another one has taken."""
_UNREAD = ("created_at_version_meta", "last_updated_at_version_meta")
"""With which versions the rows of a file came and were changed. Nobody reads it, and every commit would write it again,
22 bytes for each row that was added by itself."""


def merge_files(dataset: Any, clean: bool) -> None:
    """Write small files of a Lance data set together; rows keep their numbers. Where another process merged the same
    files meanwhile, the rest is left to it.

    Args:
        dataset: at its newest version.
        clean: also delete versions of more than two minutes ago, which reads what is kept of every version.

    Raises:
        OSError, RuntimeError: the store refuses.
    """
    rows = [part.metadata.num_rows for part in dataset.get_fragments()]
    middling = sum(_SIZES[1] <= count < _SIZES[0] for count in rows)
    size = _SIZES[0] if middling >= _MANY else _SIZES[1]
    from lance.optimize import Compaction

    plan = Compaction.plan(dataset, {"target_rows_per_fragment": size, "num_threads": 1})
    try:
        if plan.tasks:
            Compaction.commit(dataset, [_merged(task, dataset) for task in plan.tasks])
    except (OSError, RuntimeError) as error:
        if _OVERTAKEN not in str(error):
            raise
    if clean:
        dataset.cleanup_old_versions(older_than=_OLD)


def _merged(task: Any, dataset: Any) -> Any:
    """What one part of a plan wrote, without what is not read."""
    done = task.execute(dataset)
    told = json.loads(done.json())
    for part in told["new_fragments"]:
        part.update(dict.fromkeys(_UNREAD))
    return type(done).from_json(json.dumps(told))


def outdated(rows: pa.Table, keep_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of rows that a later one has replaced, and of notes of gone ids (int64).

    Args:
        rows: `id`, `gone` and `at` of all rows with their numbers.
        keep_s: replacements and notes of the last so many seconds do not count.
    """
    rows = rows.sort_by(NUMBER).combine_chunks()
    ids = rows["id"].combine_chunks()
    codes = ids.dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")  # the rows of an id together, the newest last
    numbers, gone, at = (rows[name].to_numpy()[order] for name in (NUMBER, "gone", "at"))
    early, newest = at <= now_ms() - int(1000 * keep_s), np.append(np.diff(codes[order]) != 0, True)
    named = pa.compute.not_equal(ids, "").to_numpy(zero_copy_only=False)[order]
    replaced = np.flatnonzero(~newest[: len(numbers)])
    dropped = numbers[replaced[early[replaced + 1]]]
    notes = numbers[newest[: len(numbers)] & named & gone & early]
    return dropped.astype(np.int64), notes.astype(np.int64)


def now_ms() -> int:
    """Milliseconds since 1970, as rows have them."""
    return time.time_ns() // 1_000_000
