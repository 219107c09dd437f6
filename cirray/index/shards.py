"""Which images of a gallery one of several searchers holds.

An id falls into one of 4,096 slots by its CRC-32, multiplied by 2**32 over the golden ratio (Fibonacci hashing, without
which numbered names fall together). A searcher holds a range of slots: a write concerns one searcher, and each finds
its part by the slots without looking at the others'.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SLOTS = 4_096
_MIX = 0x9E3779B1


def slot_of(image_id: str) -> int:
    """The slot of an id, the same in every process and version."""
    return (zlib.crc32(image_id.encode("utf-8", "surrogatepass")) * _MIX & 0xFFFFFFFF) * SLOTS >> 32


@dataclass(frozen=True)
class Shard:
    """A part of a gallery: number `number` (from 0) of `of`."""

    number: int = 0
    of: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the gallery."""
        return self.of == 1

    @property
    def slots(self) -> range:
        """Slots of its images."""
        return range(self.number * SLOTS // self.of, (self.number + 1) * SLOTS // self.of)

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of its images among all ids."""
        found = np.fromiter((slot_of(name) for name in ids), np.int64, len(ids))
        return np.flatnonzero((found >= self.slots.start) & (found < self.slots.stop))


WHOLE = Shard()
"""All of a gallery."""


def shard_of(image_id: str, of: int) -> int:
    """Number of the shard that holds an id."""
    return ((slot_of(image_id) + 1) * of - 1) // SLOTS
