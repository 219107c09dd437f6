"""Order pairs so that those sharing images stand together: what a generator keeps per image is then found again."""

from collections import deque
from collections.abc import Sequence

from cirray.types import Pair


def order_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs along a breadth-first walk over the graph whose nodes are images and whose edges are pairs.

    Every connected part of the graph comes out in one run; within it a pair stands where the later of its two images
    is met. The result depends on the set of pairs alone, not on their order.
    """
    links: dict[str, list[str]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.pair_id):
        links.setdefault(pair.reference_id, []).append(pair.target_id)
        links.setdefault(pair.target_id, []).append(pair.reference_id)
    place = _walk(links)

    def key(pair: Pair) -> tuple[int, int, str]:
        first, second = place[pair.reference_id], place[pair.target_id]
        return max(first, second), min(first, second), pair.pair_id

    return sorted(pairs, key=key)


def distinct_images(parts: Sequence[Sequence[Pair]]) -> int:
    """Images that are read when each part is served on its own, summed over parts: the lower, the better the order."""
    return sum(len({image for pair in part for image in (pair.reference_id, pair.target_id)}) for part in parts)


def _walk(links: dict[str, list[str]]) -> dict[str, int]:
    place: dict[str, int] = {}
    for start in sorted(links):
        queue = deque([start] if start not in place else [])
        while queue:
            image = queue.popleft()
            if image not in place:
                place[image] = len(place)
                queue.extend(other for other in sorted(links[image]) if other not in place)
    return place
