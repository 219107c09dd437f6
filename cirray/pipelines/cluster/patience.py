"""How long a stream of answers may be silent: as long as it likes before the first, then a limited time."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from cirray.core.errors import ConfigError

ItemT = TypeVar("ItemT")
_SLOWEST = 3.0
"""Times as long as the slowest answer took, its models' loading included, that another one may take."""
_LOOK_S = 0.5


def patient(
    answers: Iterable[ItemT], limit_s: float, signs: Callable[[], object] | None = None,
    took: Callable[[ItemT], float | None] = lambda _: None,
) -> Iterator[ItemT]:  # fmt: skip
    """The same answers, read in a thread of their own.

    After the first answer, a longer silence than `limit_s`, and than three times what the slowest took, is an error.
    `took`: seconds that an answer took its worker, the loading of models before its own first one included; None where
    that is not told. One that took none, as nothing had to be done for it, says nothing of how long others take.
    While `signs` change, what a long answer leaves behind as it is made, it is not silent.

    Raises ConfigError when nothing was finished in that time.
    """
    read: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    closed, end = threading.Event(), object()

    def put(item: Any, error: BaseException | None = None) -> None:
        while not closed.is_set():
            try:
                return read.put((item, error), timeout=_LOOK_S)
            except queue.Full:
                continue

    def follow() -> None:
        try:
            for item in answers:
                put(item)
            put(end)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            put(end, error)

    threading.Thread(target=follow, daemon=True, name="answers").start()
    begin, limit = time.monotonic(), None
    try:
        while True:
            item, error = _next(read, limit, signs)
            if error is not None:
                raise error
            if item is end:
                return
            limit = _next_limit(limit, limit_s, time.monotonic() - begin, took(item))
            yield item
    finally:
        closed.set()


def _next_limit(limit: float | None, least: float, waited: float, took: float | None) -> float | None:
    """The limit after an answer; none before the first that was work."""
    if took == 0:
        return limit
    return max(limit or _SLOWEST * waited, least, _SLOWEST * (took or 0.0))


def _next(
    read: "queue.Queue[tuple[Any, BaseException | None]]", limit: float | None, signs: Callable[[], object] | None
) -> Any:
    before = signs() if signs and limit else None
    while True:
        try:
            return read.get(timeout=limit)
        except queue.Empty:
            now = signs() if signs else None
            if now != before:
                before = now
                continue
        raise ConfigError(
            f"Nothing was finished for {limit:.3g} s. If one part takes longer, make parts smaller or raise "
            "ray.no_progress_timeout_s; else look for workers that die (memory)."
        )
