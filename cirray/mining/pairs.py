"""Policies that choose image pairs worth a text: unordered pairs, each once, in a deterministic order."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from cirray.core.errors import DataError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.features.store import FeatureStore
from cirray.mining.config import (
    POLICIES,
    BandConfig,
    MiningConfig,
    PolicyConfig,
    RankWindowConfig,
    SubgroupConfig,
    WindowConfig,
)
from cirray.mining.neighbours import Approximate, CentredVectors, Places, Window, windows
from cirray.mining.subgroups import subgroup_links
from cirray.types import Pair, Triplet, stable_id


@dataclass(frozen=True)
class MiningInput:
    """Input of a policy: ids to pair (without excluded ones), their features, labelled triplets."""

    ids: tuple[str, ...]
    features: FeatureStore | None = None
    triplets: tuple[Triplet, ...] = ()
    excluded: frozenset[str] = field(default_factory=frozenset)
    metrics: dict[str, float] = field(default_factory=dict)
    """What policies tell beside the pairs."""
    finder: "Finder | None" = None
    """Where exact windows are searched; None: in this process."""

    def windows(self, window: WindowConfig, config: MiningConfig, references: Places | None = None) -> Iterator[Window]:
        """Rank windows of the images (`cirray.mining.neighbours.windows`), exact or with the configured recall."""
        memory, features = config.memory_mib * 2**20 // 2, _features(self)
        if self.finder and config.recall == 1.0:
            yield from self.finder(self.ids, window, memory, references)
            return
        vectors = CentredVectors(features, self.ids, window.representation, memory)
        lists = None
        if config.recall < 1.0 and window.quantiles is None and len(vectors) > APPROXIMATE_ABOVE:
            lists = Approximate(vectors, window, memory, config.recall)
            self.metrics["recall"] = lists.recall
        yield from windows(vectors, window, memory, references, lists)


Finder = Callable[[Sequence[str], WindowConfig, int, Places | None], Iterator[Window]]
"""(images, window, bytes of working memory, places of the references or None for all) -> their windows, in order."""
APPROXIMATE_ABOVE = 100_000
"""Images beyond which `recall` below 1 searches inverted lists."""
_HASHED_TOGETHER = 1024
Policy = Callable[[MiningInput, MiningConfig, Any], list[Pair]]
"""(what there is, configuration, the policy's own settings) -> pairs."""


def mine_pairs(source: MiningInput, config: MiningConfig) -> list[Pair]:
    """Pairs by the configured policy, groups filled in, best ranks and scores first, at most `count`.

    Raises DataError when no pair is left.
    """
    policy, settings = POLICIES.get(config.policy.kind), config.policy.settings
    excluded = source.excluded
    clean = replace(
        source,
        ids=tuple(sorted(set(source.ids) - excluded)),
        triplets=tuple(t for t in source.triplets if not {t.reference_id, t.target_id} & excluded),
    )
    if config.triplet_images:
        named = {image for t in clean.triplets for image in (t.reference_id, t.target_id)}
        clean = replace(clean, ids=tuple(image for image in clean.ids if image in named))
    if config.merge_identical:
        clean = replace(clean, ids=first_of_identical(clean.ids, _features(clean)))
    known = known_pairs(clean.triplets) if config.exclude_known else set()
    found = [pair for pair in policy(clean, config, settings) if (pair.reference_id, pair.target_id) not in known]
    pairs = sorted(found, key=lambda pair: (pair.rank, -pair.score, pair.pair_id))
    pairs = pairs[: config.count] if config.count else pairs
    if not pairs:
        raise DataError(
            f"Mining with policy {config.policy.kind!r} found no pair among {len(clean.ids)} images and "
            f"{len(clean.triplets)} triplets ({len(excluded)} ids excluded). Widen the window or the scores, or "
            "exclude less."
        )
    if isinstance(settings, PolicyConfig) and settings.grouped:
        return pairs
    groups = group_of_images(pairs, config.group_limit)
    return [replace(pair, group_id=groups[pair.reference_id]) for pair in pairs]


def known_pairs(triplets: Sequence[Triplet]) -> set[tuple[str, str]]:
    """(reference, target) of labelled triplets, in both orders."""
    ordered = {(t.reference_id, t.target_id) for t in triplets}
    return ordered | {(target, reference) for reference, target in ordered}


def first_of_identical(ids: Sequence[str], features: FeatureStore) -> tuple[str, ...]:
    """The ids without those whose features equal an earlier id's byte for byte."""
    seen: dict[bytes, str] = {}
    for start in range(0, len(ids), _HASHED_TOGETHER):
        names = ids[start : start + _HASHED_TOGETHER]
        for name, tokens in zip(names, features.get(names), strict=True):
            seen.setdefault(hashlib.blake2b(tokens.tobytes(), digest_size=16).digest(), name)
    return tuple(seen.values())


def pair_id(reference_id: str, target_id: str) -> str:
    """Id of an ordered pair."""
    return stable_id("pair", reference_id, target_id)


@POLICIES.register("neighbour_band")
def neighbour_band(source: MiningInput, config: MiningConfig, settings: BandConfig) -> list[Pair]:
    """Neighbours within a band of ranks and cosines of the mean-centred frozen features.

    Source: VDG's nearest-neighbour pairs and SPN's rank windows (`rank_low`, `rank_high`, `quantiles`, `draws`), over
    one exact blockwise search. A pair found from both images keeps its better rank.
    """
    best: dict[tuple[int, int], tuple[int, float, int]] = {}
    for window in source.windows(settings, config):
        for target, rank, score in _drawn(window, settings.draws, config.seed):
            key = (min(window.reference, target), max(window.reference, target))
            before = best.get(key)
            found = 1 + (before[2] if before else 0)
            rank = min(rank, before[0]) if before else rank
            best[key] = (rank, max(round(score, 6), before[1]) if before else round(score, 6), found)
    wanted = 2 if settings.mutual else 1
    return [
        _oriented(source.ids[first], source.ids[second], config.seed, rank, score)
        for (first, second), (rank, score, found) in best.items()
        if found >= wanted
    ]


@POLICIES.register("rank_window")
def rank_window(source: MiningInput, config: MiningConfig, settings: RankWindowConfig) -> list[Pair]:
    """Ordered pairs: for each reference, `draws` targets (0: all) from a window of ranks in its own list of neighbours.

    SPN's pairs (docs/PAPERS.md#rank-windows); `quantiles` scales them to any size. With `exclude_known`, pairs of the
    labelled triplets are not drawn; ranks stay as they are.
    """
    known = known_pairs(source.triplets) if config.exclude_known else set()
    wanted, pairs = _references(source, config, settings), list[Pair]()
    for window in source.windows(settings, config, wanted):
        reference = source.ids[window.reference]
        free = [place for place, target in enumerate(window.targets) if (reference, source.ids[target]) not in known]
        left = replace(window, targets=window.targets[free], ranks=window.ranks[free], scores=window.scores[free])
        for target, rank, score in _drawn(left, settings.draws, config.seed):
            name = source.ids[target]
            pairs.append(Pair(pair_id(reference, name), reference, name, score=round(score, 6), rank=rank))
    return pairs


def _references(source: MiningInput, config: MiningConfig, settings: RankWindowConfig) -> list[int]:
    """Places of images that may be references: all, or those of triplets; at most `count`, drawn at random."""
    labelled = {t.reference_id for t in source.triplets}
    places = [at for at, image in enumerate(source.ids) if not settings.references_only or image in labelled]
    if config.count and config.count < len(places):
        rng = numpy_generator(config.seed, "references")
        places = [places[at] for at in np.sort(rng.choice(len(places), size=config.count, replace=False))]
    return places


@POLICIES.register("uniform")
def uniform(source: MiningInput, config: MiningConfig, settings: PolicyConfig) -> list[Pair]:
    """Pairs drawn uniformly (SPN): `count` of them, or one for each image."""
    if source.features is not None:
        _features(source)
    size = len(source.ids)
    wanted = min(config.count or size, size * (size - 1) // 2)
    rng, found = numpy_generator(config.seed, "uniform pairs"), dict[tuple[int, int], None]()
    while len(found) < wanted:
        draws_N2 = rng.integers(0, size, size=(2 * wanted + 16, 2))
        for first, second in draws_N2.tolist():
            if first != second and len(found) < wanted:
                found[(min(first, second), max(first, second))] = None
    return [_oriented(source.ids[a], source.ids[b], config.seed, 0, 0.0) for a, b in found]


@POLICIES.register("subgroup")
def subgroup(source: MiningInput, config: MiningConfig, settings: SubgroupConfig) -> list[Pair]:
    """Pairs inside neighbour subgroups (VDG): ring and chords, each unordered pair once, in a random direction.

    `rank` is the number of the group, so that `count` keeps whole groups first; `group_id` names the group.
    """
    memory = config.memory_mib * 2**20 // 2
    vectors = CentredVectors(_features(source), source.ids, settings.representation, memory)
    return [
        replace(
            _oriented(source.ids[link.first], source.ids[link.second], config.seed, link.group, link.score),
            group_id=stable_id("subgroup", config.seed, link.group),
        )
        for link in subgroup_links(vectors, settings, memory, config.seed)
    ]


@POLICIES.register("existing")
def existing(source: MiningInput, config: MiningConfig, settings: PolicyConfig) -> list[Pair]:
    """The (reference, target) pairs of the labelled triplets, each once, to write reverse texts for."""
    first = {(t.reference_id, t.target_id): t for t in reversed(source.triplets)}
    return [Pair(pair_id(r, t), r, t, triplet.group_id) for (r, t), triplet in sorted(first.items())]


@POLICIES.register("reverse")
def reverse(source: MiningInput, config: MiningConfig, settings: PolicyConfig) -> list[Pair]:
    """The pairs of the labelled triplets with target and reference swapped."""
    swapped = [(pair.target_id, pair.reference_id, pair.group_id) for pair in existing(source, config, settings)]
    return [Pair(pair_id(r, t), r, t, group) for r, t, group in sorted(swapped)]


def _features(source: MiningInput) -> FeatureStore:
    if source.features is None:
        raise DataError("This mining policy needs features; name a features artifact.")
    absent = source.features.missing(source.ids)
    if absent:
        raise DataError(
            f"{len(absent)} of {len(source.ids)} images to pair have no features, e.g. {absent[0]!r}. Embed that part."
        )
    return source.features


def _drawn(window: Window, draws: int, seed: int) -> list[tuple[int, int, float]]:
    """(target, rank, score) of the window's candidates, or of `draws` of them chosen at random."""
    places: Sequence[int] | np.ndarray = range(len(window.targets))
    if draws and draws < len(window.targets):
        rng = numpy_generator(seed, "draws", window.reference)
        places = np.sort(rng.choice(len(window.targets), size=draws, replace=False))
    return [(int(window.targets[p]), int(window.ranks[p]), float(window.scores[p])) for p in places]


def _oriented(first: str, second: str, seed: int, rank: int, score: float) -> Pair:
    """A random direction derived from the ids, independent of the data set's order."""
    low, high = sorted((first, second))
    if derive_seed(seed, "orientation", low, high) % 2:
        low, high = high, low
    return Pair(pair_id(low, high), low, high, score=score, rank=rank)


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
