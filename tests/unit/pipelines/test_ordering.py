"""Pairs that share images stand together, whatever order they come in."""

import numpy as np

from cirray.mining.pairs import pair_id
from cirray.pipelines.texts.ordering import order_pairs
from cirray.types import Pair


def families(count):
    pairs = []
    for number in range(count):
        names = [f"f{number:03d}-{member}" for member in range(4)]
        pairs += [Pair(pair_id(a, b), a, b) for n, a in enumerate(names) for b in names[n + 1 :]]
    return pairs


def cut(pairs, rows):
    return [pairs[start : start + rows] for start in range(0, len(pairs), rows)]


def distinct_images(parts):
    return sum(len({image for pair in part for image in (pair.reference_id, pair.target_id)}) for part in parts)


def test_order_depends_on_the_set_of_pairs_alone_and_loses_none():
    pairs = families(20)
    shuffled = [pairs[n] for n in np.random.default_rng(0).permutation(len(pairs))]
    assert order_pairs(shuffled) == order_pairs(pairs)
    assert sorted(p.pair_id for p in order_pairs(shuffled)) == sorted(p.pair_id for p in pairs)


def test_parts_read_few_images_twice():
    pairs = families(40)
    shuffled = [pairs[n] for n in np.random.default_rng(0).permutation(len(pairs))]
    ordered, random = distinct_images(cut(order_pairs(shuffled), 24)), distinct_images(cut(shuffled, 24))
    assert ordered == 160 and random > 2 * ordered


def test_a_long_chain_is_walked_from_one_side():
    names = [f"i{n:03d}" for n in range(60)]
    chain = [Pair(pair_id(a, b), a, b) for a, b in zip(names, names[1:], strict=False)]
    assert distinct_images(cut(order_pairs(chain[::-1]), 10)) <= 60 + 6
