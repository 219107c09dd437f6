"""Pairs that share images stand together, whatever order they come in; the order is that of a plain walk."""

from collections import deque

import numpy as np
import pytest

from cirray.mining.pairs import pair_id
from cirray.pipelines.texts.ordering import order_pairs
from cirray.triplets.pairs import pair_table, to_pairs
from cirray.types import Pair


def families(count):
    pairs = []
    for number in range(count):
        names = [f"f{number:03d}-{member}" for member in range(4)]
        pairs += [Pair(pair_id(a, b), a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    return pairs


def random_pairs(images, count, seed):
    ends = np.random.default_rng(seed).integers(0, images, (count, 2)).tolist()
    return [Pair(pair_id(a, f"{b}-{n}"), f"ü{a}", f"ü{b}") for n, (a, b) in enumerate(ends)]


def ordered(pairs):
    return to_pairs(order_pairs(pair_table(pairs)))


def twin(pairs):
    """The same order, pair by pair: a queue that begins at each image in turn."""
    links, place = {}, {}
    for pair in pairs:
        links.setdefault(pair.reference_id, []).append(pair.target_id)
        links.setdefault(pair.target_id, []).append(pair.reference_id)
    for start in sorted(links):
        queue = deque([start])
        while queue:
            image = queue.popleft()
            if image not in place:
                place[image] = len(place)
                queue.extend(sorted(links[image]))

    def key(pair):
        ends = place[pair.reference_id], place[pair.target_id]
        return max(ends), min(ends), pair.pair_id

    return sorted(pairs, key=key)


@pytest.mark.parametrize("pairs", [[], families(20), random_pairs(9, 40, 0), random_pairs(400, 300, 1)])
def test_order_is_that_of_a_plain_walk_and_does_not_depend_on_the_order_of_the_pairs(pairs):
    shuffled = [pairs[n] for n in np.random.default_rng(0).permutation(len(pairs))]
    assert ordered(shuffled) == ordered(pairs) == twin(pairs)


def cut(pairs, rows):
    return [pairs[start : start + rows] for start in range(0, len(pairs), rows)]


def distinct_images(parts):
    return sum(len({image for pair in part for image in (pair.reference_id, pair.target_id)}) for part in parts)


def test_parts_read_few_images_twice():
    pairs = families(40)
    shuffled = [pairs[n] for n in np.random.default_rng(0).permutation(len(pairs))]
    walked, random = distinct_images(cut(ordered(shuffled), 24)), distinct_images(cut(shuffled, 24))
    assert walked == 160 and random > 2 * walked


def test_a_long_chain_is_walked_from_one_side():
    names = [f"i{n:03d}" for n in range(60)]
    chain = [Pair(pair_id(a, b), a, b) for a, b in zip(names, names[1:], strict=False)]
    assert distinct_images(cut(ordered(chain[::-1]), 10)) <= 60 + 6
