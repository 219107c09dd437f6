"""Small pictures of a gallery, packed into one file: row -> encoded bytes. Ids are never used as paths.

An opened pack is mapped, so it stays what it was when another index takes its place.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from cirray.core.arrays import read_array

PACK, OFFSETS, SIZES = "pictures.bin", "pictures.npy", "sizes.npy"
_SIGNATURES = ((b"\x89PNG", "image/png"), (b"\xff\xd8\xff", "image/jpeg"))


class Pictures(Protocol):
    """Encoded pictures (PNG or JPEG) of a gallery by row."""

    def read(self, row: int) -> bytes:
        """Encoded picture of one row, empty when there is none."""

    def size(self, row: int) -> tuple[int, int] | None:
        """Width and height of one row's picture, so that a page can keep its place before it comes."""


@dataclass(frozen=True)
class PictureStore:
    """Encoded pictures (PNG or JPEG) by row; a row without a picture is empty."""

    pack: np.ndarray
    """All of them, one after another (uint8, memory-mapped)."""
    offsets: np.ndarray
    """Row r is at bytes offsets[r] to offsets[r + 1] (int64)."""
    sizes_N2: np.ndarray
    """Width and height in pixels (uint16), 0 where there is no picture."""

    def read(self, row: int) -> bytes:
        """See `Pictures`."""
        return self.pack[int(self.offsets[row]) : int(self.offsets[row + 1])].tobytes()

    def size(self, row: int) -> tuple[int, int] | None:
        """See `Pictures`."""
        width, height = self.sizes_N2[row].tolist()
        return (width, height) if width else None


def media_type(picture: bytes) -> str:
    """MIME type of an encoded picture, by its first bytes."""
    return next((kind for head, kind in _SIGNATURES if picture.startswith(head)), "application/octet-stream")


def write_pictures(folder: Path, pictures: Iterable[bytes]) -> list[str]:
    """Pack pictures in row order; returns the names of the files written."""
    offsets, sizes = [0], []
    with open(folder / PACK, "wb") as stream:
        for picture in pictures:
            stream.write(picture)
            offsets.append(offsets[-1] + len(picture))
            sizes.append(size_of(picture))
    np.save(folder / OFFSETS, np.asarray(offsets, dtype=np.int64))
    np.save(folder / SIZES, np.asarray(sizes, dtype=np.uint16))
    return [PACK, OFFSETS, SIZES]


def size_of(picture: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture by its header; nothing is decoded. 0 and 0 for none."""
    if not picture:
        return 0, 0
    with Image.open(io.BytesIO(picture), formats=["PNG", "JPEG"]) as image:
        return image.size


def open_pictures(folder: Path, names: Sequence[str]) -> PictureStore | None:
    """The pictures of an index, or None when it was built without."""
    if PACK not in names:
        return None
    offsets, sizes_N2 = (read_array(folder / name, mapped=False) for name in (OFFSETS, SIZES))
    pack = np.memmap(folder / PACK, np.uint8, "r") if offsets[-1] else np.empty(0, np.uint8)
    return PictureStore(pack, offsets, sizes_N2)
