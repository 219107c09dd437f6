"""Messages for people on standard error, through one logger; only results go to standard output."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


def get_logger(name: str) -> logging.Logger:
    """Logger below the package's root logger."""
    return logging.getLogger(name if name.startswith("cirray") else f"cirray.{name}")


def configure(level: int = logging.INFO) -> None:
    """Send the package's messages to standard error, once."""
    root = logging.getLogger("cirray")
    root.setLevel(level)
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False


def say(text: str = "") -> None:
    """Print one result line to standard output."""
    _write(sys.stdout, text)


def linked(address: str) -> str:
    """An address as text; on a terminal as a link that can be clicked (OSC 8)."""
    return f"\033]8;;{address}\033\\{address}\033]8;;\033\\" if sys.stdout.isatty() else address


def complain(text: str) -> None:
    """Print one line to standard error."""
    _write(sys.stderr, text)


@contextmanager
def without_line(words: bytes) -> Iterator[None]:
    """Inside, standard error is held back, also compiled code's; then it is shown without lines that hold `words`."""
    try:
        shown = os.dup(2)
    except OSError:  # this process has none
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(shown, 2)
            os.close(shown)
            held.seek(0)
            os.write(2, b"".join(line for line in held if words not in line))


def printable(text: object) -> str:
    """A name with line breaks, control characters and bytes that are not UTF-8 as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def _write(stream: TextIO, text: str) -> None:
    """Escape what the terminal's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
