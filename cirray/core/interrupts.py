"""Ctrl-C and SIGTERM end work the same way: an exception, one sentence, exit status 130 or 143.

Ray installs handlers of its own, which publish half a sweep or end the process silently; `own_handlers` keeps ours
while its libraries run. One of them is C++ code (absl's) that lies over Python's: at SIGTERM it prints a stack, sets an
alarm that aborts the process three seconds later, and only then calls Python's.

A call of compiled code that waits for a store lets no handler of Python's run, and threads in one keep the process from
ending. Those say so (`store_call`), and after a signal the process ends without them.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from cirray.core.log import complain


class Terminated(KeyboardInterrupt):
    """SIGTERM, from a container that is stopped or a batch system's time limit. Handled like Ctrl-C."""


_RAISED = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
_LIBRARIES_OWN = (*_RAISED, getattr(signal, "SIGUSR1", signal.SIGINT))
_INSTALL = signal.signal
_LOOK_S = 0.1
_PATIENCE_S = 1.0
"""Seconds that a call to a store may go on after a signal."""
_CALLS: dict[object, float] = {}
"""Those under way, in any thread: when each began."""
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Received:
    """The first signal that came, if any."""

    number: int | None = None

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


@contextmanager
def interruptible() -> Iterator[Received]:
    """Inside, Ctrl-C raises KeyboardInterrupt and SIGTERM `Terminated`; the earlier handlers return."""
    received = Received()
    with _handled_by(received.take), _ended_where_stuck(received):
        yield received


@contextmanager
def store_call() -> Iterator[None]:
    """Inside, a store may be waited for: an `interruptible` process ends a second after a signal all the same."""
    call = object()
    _CALLS[call] = time.monotonic()
    try:
        yield
    finally:
        del _CALLS[call]


@contextmanager
def _ended_where_stuck(received: Received) -> Iterator[None]:
    """Inside, a thread hears of signals as they come, and ends a process that a call to a store holds up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    (heard, told), ended = os.pipe(), threading.Event()
    os.set_blocking(told, False)
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(heard, ended, received), name="signals", daemon=True)
    watch.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        ended.set()
        os.close(told)
        watch.join()
        os.close(heard)
        if received.number and _CALLS:
            os._exit(received.status)  # threads that are left would be waited for


def _watch(heard: int, ended: threading.Event, received: Received) -> None:
    since = math.inf
    while numbers := os.read(heard, 1):
        if numbers[0] not in _RAISED:
            continue
        since = time.monotonic()
        while not ended.wait(_LOOK_S):
            if any(max(since, began) + _PATIENCE_S < time.monotonic() for began in list(_CALLS.values())):
                received.number = received.number or numbers[0]
                complain(received.sentence)
                os._exit(received.status)


class Told:
    """The first signal that came inside `noted`, if any."""

    number: int | None = None

    def __bool__(self) -> bool:
        """Whether one came."""
        return self.number is not None

    def wait(self, seconds: float = math.inf) -> bool:
        """Wait for a signal, so many seconds at most; whether one came."""
        until = time.monotonic() + seconds
        while not self and time.monotonic() < until:
            time.sleep(min(_LOOK_S, max(0.0, until - time.monotonic())))
        return bool(self)

    def stop(self) -> NoReturn:
        """Raise what the signal means, at a place where no library's call is cut.

        Raises KeyboardInterrupt: `Terminated` for SIGTERM.
        """
        raise _RAISED[signal.Signals(self.number or signal.SIGINT)]


@contextmanager
def noted() -> Iterator[Told]:
    """Inside, the first Ctrl-C or SIGTERM is noted and raises nothing; a second one ends the process at once.

    An exception that a handler raises inside Ray's C++ calls can abort the process.
    """
    told = Told()

    def note(number: int, frame: Any) -> None:
        told.number = number
        signal.alarm(0)
        for each in _RAISED:
            _INSTALL(each, signal.SIG_DFL)

    with _handled_by(note), own_handlers():
        yield told


@contextmanager
def _handled_by(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM go to a handler; outside the main thread nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _RAISED}
    for number in _RAISED:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier if earlier is not None else signal.SIG_DFL)


@contextmanager
def own_handlers() -> Iterator[dict[int, Any]]:
    """Inside, a library's attempts to set a handler for Ctrl-C, SIGTERM or SIGUSR1 have no effect; C++ code's end here.

    Yields:
        Signal -> the handler that was asked for.
    """
    asked: dict[int, Any] = {}
    outer = signal.signal

    def kept(number: int, handler: Any) -> Any:
        if number not in _LIBRARIES_OWN:
            return outer(number, handler)
        asked[number] = handler
        return signal.getsignal(number)

    signal.signal = kept  # type: ignore[assignment]
    try:
        yield asked
    finally:
        signal.signal = outer
        _lay_on_top()


def _lay_on_top() -> None:
    """Put Python's handlers back over those that a library's C++ code has set."""
    for number in _RAISED if threading.current_thread() is threading.main_thread() else ():
        if callable(handler := signal.getsignal(number)):
            _INSTALL(number, handler)
