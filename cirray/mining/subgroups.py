"""Neighbour subgroups: small sets of images that are alike but not the same, and the links in them (VDG).

Anchors come in random order. Of an anchor's `top_k` neighbours by falling cosine, those above `max_score` are left out;
then images are taken down the list, each at least `min_gap` below the last, until the group has `size` images with the
anchor. A group that shares more than `max_shared` images with an accepted one is dropped. Consecutive images form a
ring; chords join opposite ones. With s_k the cosine of the k-th image taken: s_k <= max_score and s_k - s_(k+1) >=
min_gap (docs/PAPERS.md#neighbour-subgroups).
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cirray.core.seeding import numpy_generator
from cirray.mining.config import SubgroupConfig, WindowConfig
from cirray.mining.neighbours import CentredVectors, windows


@dataclass(frozen=True)
class Limits:
    """Ceiling of cosines and least gap between two taken ones, as configured or calibrated."""

    max_score: float
    min_gap: float


@dataclass(frozen=True)
class Links:
    """Unordered pairs of image indices `[E]`, the group each comes from, and its cosine."""

    low: np.ndarray
    high: np.ndarray
    group: np.ndarray
    score: np.ndarray


def subgroup_links(vectors: CentredVectors, config: SubgroupConfig, memory_bytes: int, seed: int = 0) -> Links:
    """Links of all accepted groups, each unordered pair once, in the order the groups were accepted.

    The answer depends on the seed, which orders the anchors, and not on `memory_bytes`.
    """
    targets_NK, scores_NK = neighbour_table(vectors, config, memory_bytes)
    limits = calibrated(scores_NK, config)
    key_E, group_E, score_E = array("q"), array("q"), array("d")
    for number, group in enumerate(accepted_groups(targets_NK, scores_NK, config, limits, seed)):
        cosine_GG = _cosines(vectors, group)
        for a, b in links(len(group), config.links):
            score = round(float(cosine_GG[a, b]), 6)
            if config.min_score <= score <= limits.max_score:
                key_E.append(min(group[a], group[b]) * len(vectors) + max(group[a], group[b]))
                group_E.append(number)
                score_E.append(score)
    keys = np.array(key_E, np.int64)
    first_E = np.sort(np.unique(keys, return_index=True)[1])
    low_E, high_E = np.divmod(keys[first_E], max(len(vectors), 1))
    return Links(low_E, high_E, np.array(group_E, np.int64)[first_E], np.array(score_E)[first_E])


def neighbour_table(
    vectors: CentredVectors, config: SubgroupConfig, memory_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indices and cosines of every image's `top_k` neighbours, best first, with near-duplicates: `[N, K]`."""
    unbound = {"max_score": np.inf, "min_score": -np.inf}
    wide = WindowConfig(rank_high=config.top_k).model_copy(update=unbound)
    width = min(config.top_k, len(vectors) - 1)
    targets_NK = np.empty((len(vectors), width), dtype=np.int64)
    scores_NK = np.empty((len(vectors), width), dtype=np.float32)
    for window in windows(vectors, wide, memory_bytes):
        targets_NK[window.reference], scores_NK[window.reference] = window.targets, window.scores
    return targets_NK, scores_NK


def calibrated(scores_NK: np.ndarray, config: SubgroupConfig) -> Limits:
    """Ceiling and gap, as quantiles of the cosines and of the steps between them if `calibration` is set.

    The paper's 0.94 and 0.002 are for its encoder's cosines.
    """
    if config.calibration is None or scores_NK.shape[1] < 2:
        return Limits(config.max_score, config.min_gap)
    ceiling, gap = config.calibration
    steps = scores_NK[:, :-1] - scores_NK[:, 1:]
    return Limits(float(np.quantile(scores_NK, ceiling)), float(np.quantile(steps, gap)))


def accepted_groups(
    targets_NK: np.ndarray, scores_NK: np.ndarray, config: SubgroupConfig, limits: Limits, seed: int = 0
) -> Iterator[list[int]]:
    """Groups in the order their anchors are drawn, at most `groups` of them, overlaps dropped."""
    order = numpy_generator(seed, "anchors").permutation(len(targets_NK))
    member_of: dict[int, list[int]] = {}
    accepted = 0
    for anchor in order.tolist():
        group = walk(anchor, targets_NK[anchor], scores_NK[anchor], config.size, limits)
        if len(group) < config.size or _shared(group, member_of) > config.max_shared:
            continue
        for image in group:
            member_of.setdefault(image, []).append(accepted)
        yield group
        accepted += 1
        if accepted == config.groups:
            return


def walk(anchor: int, targets_K: np.ndarray, scores_K: np.ndarray, size: int, limits: Limits) -> list[int]:
    """The anchor and the images taken from its list: at most `size` images."""
    group, last = [anchor], np.inf
    for target, score in zip(targets_K.tolist(), scores_K.tolist(), strict=True):
        if score > limits.max_score or last - score < limits.min_gap:
            continue
        if len(group) == size:
            break
        group.append(target)
        last = score
    return group


def links(size: int, kind: str) -> list[tuple[int, int]]:
    """Pairs of positions in a group: the ring, and for `ring+chords` opposite ones (6 + 3 for six images)."""
    ring = [(place, (place + 1) % size) for place in range(size if size > 2 else 1)]
    half = size // 2
    chords = [(place, place + half) for place in range(half)] if size > 3 else []
    return ring + (chords if kind == "ring+chords" else [])


def _cosines(vectors: CentredVectors, group: Sequence[int]) -> np.ndarray:
    rows_GD = vectors.take(group)
    return rows_GD @ rows_GD.T


def _shared(group: Sequence[int], member_of: dict[int, list[int]]) -> int:
    """Most images that the group has in common with one accepted group."""
    counts: dict[int, int] = {}
    for image in group:
        for number in member_of.get(image, ()):
            counts[number] = counts.get(number, 0) + 1
    return max(counts.values(), default=0)
