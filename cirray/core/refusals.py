"""What disks and object stores refuse, as one sentence: they are full, read-only, closed to this user, or away.

Libraries tell it in their own ways: an errno, Rust's `(os error 28)`, NumPy's `9 requested and 4 written`, AWS's words.
"""

import errno
import os
import re

from cirray.core.errors import StoreError, reason_of, wrapped

_REMEDIES = {
    errno.ENOSPC: "Free some space there", errno.EDQUOT: "Free some space there",
    errno.EFBIG: "Raise this process's limit on the size of files (`ulimit -f`)",
    errno.EMFILE: "Raise its limit on open files (`ulimit -n`)", errno.EROFS: "Make that disk writable",
    errno.EACCES: "Give this user the right to it", errno.EPERM: "Give this user the right to it",
    errno.ENOTDIR: "Give another place", errno.ENAMETOOLONG: "Give a shorter name", errno.EIO: "Look after that disk",
}  # fmt: skip
_SAID_OF_MORE = (errno.EACCES, errno.EPERM)
"""Of ports and processes too: without a file they say nothing of a disk."""
_AWAY_CODES = {
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_AWAY_WORDS = re.compile(
    r"HTTP status (429|5\d\d)|curlCode|\b(NETWORK_CONNECTION|SERVICE_UNAVAILABLE|SLOW_DOWN|UNAVAILABLE|"
    r"DEADLINE_EXCEEDED|REQUEST_TIMEOUT|INTERNAL_FAILURE)\b"
)
_RUST = re.compile(r"\(os error (\d+)\)")
_CUT_SHORT = re.compile(r"PytorchStreamWriter|unexpected pos|\d+ requested and \d+ written")
"""What PyTorch and NumPy say of a file that could not be written to its end; the system's reason is lost."""


def is_away(error: BaseException) -> bool:
    """Whether it is the store that does not answer now, which says nothing of the file that was asked for."""
    if isinstance(error, OSError) and error.errno in _AWAY_CODES:
        return True
    return isinstance(error, ConnectionError | TimeoutError) or bool(_AWAY_WORDS.search(str(error)))


def refused(uri: str, what: str, error: BaseException) -> StoreError:
    """The error of a file or folder that cannot be `what`: read, written, deleted."""
    remedy = _REMEDIES.get(_code(error) or 0) or ("Wait until the store answers" if is_away(error) else "")
    return _told(repr(uri), what, getattr(error, "strerror", None) or reason_of(error, 200), remedy)


def refusal(error: BaseException, place: str = "") -> StoreError | None:
    """The error of a disk that refuses, where an error, or one that it wraps, says so; else None.

    `place`: where was written, for errors that name no file.
    """
    for failure in wrapped(error):
        code = _code(failure)
        file = getattr(failure, "filename", None)
        if code in _REMEDIES and (file or code not in _SAID_OF_MORE):
            name = f"{file!r}" if file else f"A file below {place!r}" if place else "A file"
            return _told(name, "used", os.strerror(code), _REMEDIES[code])
    return None


def _code(error: BaseException) -> int | None:
    """The system's number of an error, as far as its library tells it."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if found := _RUST.search(str(error)):
        return int(found[1])
    return errno.ENOSPC if isinstance(error, OSError | RuntimeError) and _CUT_SHORT.search(str(error)) else None


def _told(name: str, what: str, reason: str, remedy: str) -> StoreError:
    then = f" {remedy}, then run the same command again; what was finished is kept." if remedy else ""
    return StoreError(f"{name} cannot be {what}: {reason.rstrip('.')}.{then}")
