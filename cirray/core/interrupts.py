"""Ctrl-C and SIGTERM end work the same way: an exception, one sentence, exit status 130 or 143.

Ray installs handlers of its own, which publish half a sweep or end the process silently; `own_handlers` keeps ours
while its libraries run.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a container that is stopped or a batch system's time limit. Handled like Ctrl-C."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_LIBRARIES_OWN = (*_RAISED, getattr(signal, "SIGUSR1", signal.SIGINT))
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Received:
    """The first signal that came, if any."""

    def __init__(self) -> None:
        """None yet."""
        self.number: int | None = None

    def take(self, number: int, frame: Any) -> None:
        """The handler: note the signal and raise."""
        self.number = self.number or number
        raise _RAISED[signal.Signals(number)]

    def note(self, stop: BaseException) -> bool:
        """Whether an exception means a signal, also from a library's own handler (Ray's: exit 15)."""
        if self.number is None and isinstance(stop, KeyboardInterrupt):
            self.number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        if self.number is None and isinstance(stop, SystemExit) and stop.code == signal.SIGTERM:
            self.number = signal.SIGTERM
        return self.number is not None

    @property
    def status(self) -> int:
        """Exit status by the shell's rule: 128 and the signal's number."""
        return 128 + (self.number or 0)

    @property
    def sentence(self) -> str:
        """The message for the user."""
        word = _WORDS[signal.Signals(self.number or signal.SIGINT)]
        return (
            f"{word}; nothing half-done was published, finished shards and checkpoints are kept: the same command goes "
            "on from there"
        )


_ACTIVE: list[Received] = []


@contextmanager
def interruptible() -> Iterator[Received]:
    """Inside, Ctrl-C raises KeyboardInterrupt and SIGTERM `Terminated`; the earlier handlers return."""
    received = Received()
    if not _in_main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in _RAISED}
    _ACTIVE.append(received)
    reinstall()
    try:
        yield received
    finally:
        _ACTIVE.remove(received)
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def reinstall() -> None:
    """Put the handlers of `interruptible` back, after a library has put its own in their place."""
    if _ACTIVE and _in_main_thread():
        for number in _RAISED:
            signal.signal(number, _ACTIVE[-1].take)


@contextmanager
def own_handlers() -> Iterator[dict[int, Any]]:
    """Inside, a library's attempts to set a handler for Ctrl-C, SIGTERM or SIGUSR1 have no effect.

    Yields:
        Signal -> the handler that was asked for.
    """
    asked: dict[int, Any] = {}
    original = signal.signal

    def kept(number: int, handler: Any) -> Any:
        if number not in _LIBRARIES_OWN:
            return original(number, handler)
        asked[number] = handler
        return signal.getsignal(number)

    signal.signal = kept  # type: ignore[assignment]
    try:
        yield asked
    finally:
        signal.signal = original


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
