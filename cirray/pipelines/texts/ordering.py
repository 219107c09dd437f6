"""Order pairs so that those sharing images are together, for a generator's cache per image."""

from collections import deque
from collections.abc import Sequence

from cirray.types import Pair


def order_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs along a breadth-first walk over the graph whose nodes are images and whose edges are pairs.

    Connected parts stay together; in them, a pair comes when the later of its images is reached. The result does not
    depend on the order of the pairs.
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
