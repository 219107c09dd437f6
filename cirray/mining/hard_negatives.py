"""Hard negatives of triplets: images that a query ranks high but does not ask for. NumPy only."""

import numpy as np

from cirray.core.seeding import numpy_generator

UNUSED = -1
"""Fills lists that are shorter than others."""
_SCORES = 2**25


def hard_lists(
    query_MD: np.ndarray, image_ND: np.ndarray, reference_M: np.ndarray, target_M: np.ndarray, ranks: tuple[int, int],
    max_cosine: float, block: int = 0,
) -> np.ndarray:  # fmt: skip
    """For every query, the possible negatives in a window of ranks (first and last, from 1) of its own ranking.

    All vectors have norm 1. Images nearer to the target than `max_cosine` are left out, as they may show the same.
    `block` queries are ranked at once; 0: as many as have 33 million scores.

    Returns: int64 `[M, K]`: rows of images, best first, without target and reference; -1 fills.
    """
    low, high = ranks[0] - 1, min(ranks[1], len(image_ND))
    lists_MK = np.full((len(query_MD), max(high - low, 0)), UNUSED, dtype=np.int64)
    block = block or max(1, _SCORES // max(len(image_ND), 1))
    for begin in range(0, len(query_MD), block):
        part = slice(begin, begin + block)
        scores_BN = query_MD[part] @ image_ND.T
        near_BN = image_ND[target_M[part]] @ image_ND.T > max_cosine
        order_BN = np.argsort(-scores_BN, axis=1, kind="stable")[:, :high][:, low:]
        for row, order_K in enumerate(order_BN, start=begin):
            own = (order_K == target_M[row]) | (order_K == reference_M[row]) | near_BN[row - begin][order_K]
            kept = order_K[~own]
            lists_MK[row, : len(kept)] = kept
    return lists_MK


def draw_hard(lists_MK: np.ndarray, rows: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """`count` images of each row's list, a pure function of (seed, epoch, row): int64 `[B, count]`, -1 fills."""
    drawn_BH = np.full((len(rows), count), UNUSED, dtype=np.int64)
    for place, row in enumerate(rows):
        usable = lists_MK[row][lists_MK[row] != UNUSED]
        rng = numpy_generator(seed, "hard negatives", epoch, int(row))
        chosen = rng.permutation(len(usable))[:count]
        drawn_BH[place, : len(chosen)] = usable[chosen]
    return drawn_BH
