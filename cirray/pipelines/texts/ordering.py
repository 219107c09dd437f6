"""Order pairs so that those sharing images are together, for a generator's cache per image."""

from array import array

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.triplets.schema import image_ids


def order_pairs(pairs: pa.Table) -> pa.Table:
    """Pairs (`PAIR_SCHEMA`) along a breadth-first walk over the graph whose nodes are images and whose edges are pairs.

    Connected parts stay together; in them, a pair comes when the later of its images is reached. The result does not
    depend on the order of the pairs.
    """
    names = image_ids(pairs)
    first_E, second_E = (pc.index_in(pairs.column(f"{end}_id"), names).to_numpy() for end in ("reference", "target"))
    place_2E = _walk(first_E, second_E, len(names))[np.stack([first_E, second_E])]
    reached_E = place_2E.max(axis=0) * len(names) + place_2E.min(axis=0)
    keys = pa.table({"reached": reached_E, "pair_id": pairs.column("pair_id")})
    return pairs.take(pc.sort_indices(keys, [("reached", "ascending"), ("pair_id", "ascending")]))


def _walk(first_E: np.ndarray, second_E: np.ndarray, images: int) -> np.ndarray:
    """Place of every image in the walk, which begins at the least image of each connected part: int64 `[images]`."""
    links = np.concatenate([first_E, second_E]) * np.int64(images) + np.concatenate([second_E, first_E])
    links.sort()
    ends = memoryview(np.searchsorted(links, np.arange(1, images + 1) * images))
    others = memoryview(links % max(images, 1))
    reached, order, done = bytearray(images), array("q"), 0
    for start in range(images):
        if not reached[start]:
            reached[start] = True
            order.append(start)
        while done < len(order):
            image = order[done]
            done += 1
            for other in others[ends[image - 1] if image else 0 : ends[image]]:
                if not reached[other]:
                    reached[other] = True
                    order.append(other)
    place_N = np.empty(images, dtype=np.int64)
    place_N[np.frombuffer(order, dtype=np.int64)] = np.arange(images)
    return place_N
