"""Small pictures of a gallery, packed into one file: row -> encoded bytes. Ids are never used as paths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PACK, OFFSETS = "pictures.bin", "pictures.npy"
_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


@dataclass(frozen=True)
class PictureStore:
    """Encoded pictures (PNG or JPEG) by row; a row without a picture is empty."""

    path: Path
    offsets: np.ndarray
    """Row r is at bytes offsets[r] to offsets[r + 1] (int64)."""

    def read(self, row: int) -> bytes:
        """Encoded picture of one row, empty when there is none."""
        start, end = int(self.offsets[row]), int(self.offsets[row + 1])
        if start == end:
            return b""
        with open(self.path, "rb") as stream:
            stream.seek(start)
            return stream.read(end - start)


def media_type(picture: bytes) -> str:
    """MIME type of an encoded picture, by its first bytes."""
    return next((kind for head, kind in _SIGNATURES if picture.startswith(head)), "application/octet-stream")


def write_pictures(folder: Path, pictures: Iterable[bytes]) -> list[str]:
    """Pack pictures in row order; returns the names of the files written."""
    offsets = [0]
    with open(folder / PACK, "wb") as stream:
        for picture in pictures:
            stream.write(picture)
            offsets.append(offsets[-1] + len(picture))
    np.save(folder / OFFSETS, np.asarray(offsets, dtype=np.int64))
    return [PACK, OFFSETS]


def open_pictures(folder: Path, names: Sequence[str]) -> PictureStore | None:
    """The pictures of an index, or None when it was built without."""
    if PACK not in names:
        return None
    return PictureStore(folder / PACK, np.load(folder / OFFSETS, allow_pickle=False))
