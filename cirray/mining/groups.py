"""Groups of similar images: one pair of a group per training batch keeps false negatives out."""

from collections.abc import Sequence

from cirray.types import Pair, stable_id


class _Sets:
    """Disjoint sets with a cap on their size."""

    def __init__(self, limit: int) -> None:
        self._parent: dict[str, str] = {}
        self._size: dict[str, int] = {}
        self._limit = limit

    def root(self, item: str) -> str:
        """Name of an item's set; a new item is a set of its own."""
        self._parent.setdefault(item, item)
        self._size.setdefault(item, 1)
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def join(self, first: str, second: str) -> None:
        """Join the sets of two items unless the result would exceed the cap."""
        low, high = sorted((self.root(first), self.root(second)))
        if low != high and self._size[low] + self._size[high] <= self._limit:
            self._parent[high] = low
            self._size[low] += self._size.pop(high)


def group_of_images(pairs: Sequence[Pair], limit: int) -> dict[str, str]:
    """Group id of every image: images join along pairs, most similar first, up to `limit` images a group.

    The cap keeps chains of neighbours from growing into one group of everything.
    """
    sets = _Sets(limit)
    for pair in sorted(pairs, key=lambda pair: (-pair.score, pair.rank, pair.pair_id)):
        sets.join(pair.reference_id, pair.target_id)
    images = {image for pair in pairs for image in (pair.reference_id, pair.target_id)}
    return {image: stable_id("group", sets.root(image)) for image in sorted(images)}
