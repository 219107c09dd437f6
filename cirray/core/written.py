"""Digests of files from while they were written, so that who publishes them need not read them back from a store."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 64 * 2**20
"""Larger files are digested by blocks of this size."""
_NOTED: dict[str, str] = {}
_Piece = bytes | memoryview


def note(uri: str, data: "bytes | pa.Buffer") -> None:
    """Remember the digest of what was just written to a URI."""
    view = memoryview(data)
    _NOTED[uri] = digest_of(len(view), lambda at: [view[at : at + BLOCK_BYTES]])


def learn(digests: Mapping[str, str]) -> None:
    """Take what another process noted."""
    _NOTED.update(digests)


def hand_over() -> dict[str, str]:
    """All that was noted here, for the process that will publish it."""
    noted = dict(_NOTED)
    _NOTED.clear()
    return noted


def take(uri: str) -> str | None:
    """The digest of a file as it was written, once: who asks again reads it, as others may have written since."""
    return _NOTED.pop(uri, None)


def digest_of(size: int, pieces_from: Callable[[int], Iterable[_Piece]], each: Callable[..., Any] = map) -> str:
    """Digest of a file's size and content; of a large one by the digests of its blocks.

    Args:
        size: bytes of the file.
        pieces_from: the pieces of the block at an offset.
        each: as `map`, perhaps by several threads.
    """
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    blocks = pieces_from(0) if size <= BLOCK_BYTES else each(partial(_block, pieces_from), range(0, size, BLOCK_BYTES))
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()


def _block(pieces_from: Callable[[int], Iterable[_Piece]], at: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces_from(at):
        digest.update(piece)
    return digest.digest()
