"""Policies that choose image pairs worth a text: unordered pairs, each once, in a deterministic order.

Pairs are Arrow columns, and inside a policy arrays of places in the sorted ids; suffix E is one value a pair.
"""

import hashlib
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import DataError
from cirray.core.ids import ABSENT, Ids, Texts, sorted_ids
from cirray.core.seeding import numpy_generator
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
from cirray.triplets.pairs import PAIR_SCHEMA, pair_table
from cirray.triplets.schema import hex_ids, image_ids, stable_bytes
from cirray.triplets.store import KEY_MARK, row_keys
from cirray.types import Pair, Triplet, stable_id


@dataclass(frozen=True)
class MiningInput:
    """Input of a policy: ids to pair (without excluded ones), their features, labelled triplets."""

    ids: Sequence[str]
    features: FeatureStore | None = None
    triplets: tuple[Triplet, ...] = ()
    excluded: Collection[str] = ()
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
_HASHED_TOGETHER, _TOGETHER = 1024, 4096
Policy = Callable[[MiningInput, MiningConfig, Any], pa.Table]
"""(what there is, configuration, the policy's own settings) -> pairs, a table of `PAIR_SCHEMA`."""


def mine_pairs(source: MiningInput, config: MiningConfig) -> pa.Table:
    """Pairs by the configured policy, groups filled in, best ranks and scores first, at most `count`.

    Raises DataError when no pair is left.
    """
    policy, settings = POLICIES.get(config.policy.kind), config.policy.settings
    excluded = Ids.of(source.excluded)
    ids = Texts(source.ids)
    clean = replace(
        source,
        ids=sorted_ids(ids.column.filter(pa.array(excluded.places(ids) == ABSENT))),
        triplets=tuple(t for t in source.triplets if t.reference_id not in excluded and t.target_id not in excluded),
    )
    if config.triplet_images:
        named = {image for t in clean.triplets for image in (t.reference_id, t.target_id)}
        clean = replace(clean, ids=Ids(image for image in clean.ids if image in named))
    if config.merge_identical:
        clean = replace(clean, ids=first_of_identical(clean.ids, _features(clean)))
    found = policy(clean, config, settings)
    if config.exclude_known and clean.triplets:
        known = pa.array([KEY_MARK.join(ends) for ends in known_pairs(clean.triplets)])
        found = found.filter(pc.invert(pc.is_in(row_keys(found, ("reference_id", "target_id")), known)))
    order = pc.sort_indices(found, [("rank", "ascending"), ("score", "descending"), ("pair_id", "ascending")])
    pairs = found.take(order[: config.count] if config.count else order)
    if not len(pairs):
        raise DataError(
            f"Mining with policy {config.policy.kind!r} found no pair among {len(clean.ids)} images and "
            f"{len(clean.triplets)} triplets ({len(excluded)} ids excluded). Widen the window or the scores, or "
            "exclude less."
        )
    grouped = isinstance(settings, PolicyConfig) and settings.grouped
    return pairs if grouped else with_groups(pairs, config.group_limit)


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
def neighbour_band(source: MiningInput, config: MiningConfig, settings: BandConfig) -> pa.Table:
    """Neighbours within a band of ranks and cosines of the mean-centred frozen features.

    Source: VDG's nearest-neighbour pairs and SPN's rank windows (`rank_low`, `rank_high`, `quantiles`, `draws`), over
    one exact blockwise search. A pair found from both images keeps its better rank.
    """
    drawn = (_drawn(window, settings.draws, config.seed) for window in source.windows(settings, config))
    reference_E, target_E, rank_E, score_E = _columns(drawn)
    key_E = np.minimum(reference_E, target_E) * len(source.ids) + np.maximum(reference_E, target_E)
    order_E = np.argsort(key_E, kind="stable")
    begin_E = np.flatnonzero(np.diff(key_E[order_E], prepend=-1))
    rank_E, score_E = np.minimum.reduceat(rank_E[order_E], begin_E), np.maximum.reduceat(score_E[order_E], begin_E)
    kept_E = np.diff(begin_E, append=len(key_E)) >= (2 if settings.mutual else 1)
    low_E, high_E = np.divmod(key_E[order_E][begin_E][kept_E], max(len(source.ids), 1))
    return _oriented(source.ids, low_E, high_E, config.seed, rank_E[kept_E], score_E[kept_E])


@POLICIES.register("rank_window")
def rank_window(source: MiningInput, config: MiningConfig, settings: RankWindowConfig) -> pa.Table:
    """Ordered pairs: for each reference, `draws` targets (0: all) from a window of ranks in its own list of neighbours.

    SPN's pairs (docs/PAPERS.md#rank-windows); `quantiles` scales them to any size. With `exclude_known`, pairs of the
    labelled triplets are not drawn; ranks stay as they are.
    """
    ids, size = Ids.of(source.ids), len(source.ids)
    known = list(known_pairs(source.triplets)) if config.exclude_known else []
    first_E, second_E = (ids.places([pair[end] for pair in known]) for end in (0, 1))
    there_E = (first_E != ABSENT) & (second_E != ABSENT)
    taken = first_E[there_E] * size + second_E[there_E]

    def drawn() -> Iterator[Window]:
        for window in source.windows(settings, config, _references(source, config, settings)):
            free = ~np.isin(window.reference * size + window.targets, taken)
            yield _drawn(_chosen(window, free), settings.draws, config.seed)

    return _pairs(source.ids, *_columns(drawn()))


def _references(source: MiningInput, config: MiningConfig, settings: RankWindowConfig) -> np.ndarray:
    """Places of images that may be references: all, or those of triplets; at most `count`, drawn at random."""
    labelled = {t.reference_id for t in source.triplets}
    named = [at for at, image in enumerate(source.ids) if image in labelled] if settings.references_only else None
    places = np.arange(len(source.ids)) if named is None else np.array(named, np.int64)
    if config.count and config.count < len(places):
        rng = numpy_generator(config.seed, "references")
        places = places[np.sort(rng.choice(len(places), size=config.count, replace=False))]
    return places


@POLICIES.register("uniform")
def uniform(source: MiningInput, config: MiningConfig, settings: PolicyConfig) -> pa.Table:
    """Pairs drawn uniformly (SPN): `count` of them, or one for each image."""
    if source.features is not None:
        _features(source)
    size = len(source.ids)
    wanted = min(config.count or size, size * (size - 1) // 2)
    rng, key_E = numpy_generator(config.seed, "uniform pairs"), np.empty(0, dtype=np.int64)
    while len(key_E) < wanted:
        draws_N2 = np.sort(rng.integers(0, size, size=(2 * wanted + 16, 2)), axis=1)
        draws_N2 = draws_N2[draws_N2[:, 0] < draws_N2[:, 1]]
        key_E = np.concatenate([key_E, draws_N2[:, 0] * size + draws_N2[:, 1]])
        key_E = key_E[np.sort(np.unique(key_E, return_index=True)[1])][:wanted]
    low_E, high_E = np.divmod(key_E, max(size, 1))
    return _oriented(source.ids, low_E, high_E, config.seed, np.zeros(len(key_E), np.int64), np.zeros(len(key_E)))


@POLICIES.register("subgroup")
def subgroup(source: MiningInput, config: MiningConfig, settings: SubgroupConfig) -> pa.Table:
    """Pairs inside neighbour subgroups (VDG): ring and chords, each unordered pair once, in a random direction.

    `rank` is the number of the group, so that `count` keeps whole groups first; `group_id` names the group.
    """
    memory = config.memory_mib * 2**20 // 2
    vectors = CentredVectors(_features(source), source.ids, settings.representation, memory)
    links = subgroup_links(vectors, settings, memory, config.seed)
    pairs = _oriented(source.ids, links.low, links.high, config.seed, links.group, links.score)
    groups = range(int(links.group.max(initial=-1)) + 1)
    names = pa.array((stable_id("subgroup", config.seed, group) for group in groups), pa.string())
    return _grouped(pairs, names.take(links.group))


@POLICIES.register("existing")
def existing(source: MiningInput, config: MiningConfig, settings: PolicyConfig) -> pa.Table:
    """The (reference, target) pairs of the labelled triplets, each once, to write reverse texts for."""
    first = {(t.reference_id, t.target_id): t for t in reversed(source.triplets)}
    return pair_table([Pair(pair_id(r, t), r, t, triplet.group_id) for (r, t), triplet in sorted(first.items())])


@POLICIES.register("reverse")
def reverse(source: MiningInput, config: MiningConfig, settings: PolicyConfig) -> pa.Table:
    """The pairs of the labelled triplets with target and reference swapped."""
    swapped = (replace(t, reference_id=t.target_id, target_id=t.reference_id) for t in source.triplets)
    return existing(replace(source, triplets=tuple(swapped)), config, settings)


def _features(source: MiningInput) -> FeatureStore:
    if source.features is None:
        raise DataError("This mining policy needs features; name a features artifact.")
    absent = source.features.missing(source.ids)
    if absent:
        raise DataError(
            f"{len(absent)} of {len(source.ids)} images to pair have no features, e.g. {absent[0]!r}. Embed that part."
        )
    return source.features


def _drawn(window: Window, draws: int, seed: int) -> Window:
    """The window, or `draws` of its candidates chosen at random."""
    if not draws or draws >= len(window.targets):
        return window
    rng = numpy_generator(seed, "draws", window.reference)
    return _chosen(window, np.sort(rng.choice(len(window.targets), size=draws, replace=False)))


def _chosen(window: Window, places: np.ndarray) -> Window:
    return Window(window.reference, window.targets[places], window.ranks[places], window.scores[places])


def _columns(drawn: Iterator[Window]) -> tuple[np.ndarray, ...]:
    """References, targets, ranks and scores (six digits) of windows' candidates, one after another."""
    parts: list[tuple[np.ndarray, ...]] = [(np.empty(0, dtype=np.int64),) * 3 + (np.empty(0),)]
    while some := list(islice(drawn, _TOGETHER)):
        reference_E = np.repeat([window.reference for window in some], [len(window.targets) for window in some])
        targets, ranks, scores = (
            np.concatenate([getattr(window, name) for window in some]) for name in ("targets", "ranks", "scores")
        )
        parts.append((reference_E, targets, ranks, np.round(scores.astype(np.float64), 6)))
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _oriented(
    ids: Sequence[str], low_E: np.ndarray, high_E: np.ndarray, seed: int, rank_E: np.ndarray, score_E: np.ndarray
) -> pa.Table:
    """Pairs in a random direction derived from the ids, independent of the data set's order; `low_E` < `high_E`."""
    names = pa.array(ids, pa.string())
    last_E = stable_bytes(f"{seed}\x1forientation", names.take(low_E), names.take(high_E))[:, 7]
    swap_E = last_E & 2 > 0  # the lowest bit of `derive_seed`
    first_E, second_E = np.where(swap_E, high_E, low_E), np.where(swap_E, low_E, high_E)
    return _pairs(ids, first_E, second_E, rank_E, score_E)


def _pairs(
    ids: Sequence[str], first_E: np.ndarray, second_E: np.ndarray, rank_E: np.ndarray, score_E: np.ndarray
) -> pa.Table:
    names = pa.array(ids, pa.string())
    references, targets = names.take(first_E), names.take(second_E)
    numbers = stable_bytes("pair", references, targets)
    columns = {
        "pair_id": hex_ids(numbers), "reference_id": references, "target_id": targets,
        "group_id": pa.repeat("", len(numbers)), "score": score_E.astype(np.float64), "rank": rank_E.astype(np.int64),
    }  # fmt: skip
    return pa.table(columns, schema=PAIR_SCHEMA)


def with_groups(pairs: pa.Table, limit: int) -> pa.Table:
    """The pairs with the group of their images: images join along pairs, most similar first, up to `limit` a group.

    The cap keeps chains of neighbours from growing into one group of everything.
    """
    names = image_ids(pairs)
    first_E, second_E = (pc.index_in(pairs.column(f"{end}_id"), names).to_numpy() for end in ("reference", "target"))
    by = [("score", "descending"), ("rank", "ascending"), ("pair_id", "ascending")]
    order_E = pc.sort_indices(pairs, by).to_numpy()
    root_N = _joined(first_E[order_E], second_E[order_E], len(names), limit)
    roots, number_N = np.unique(root_N, return_inverse=True)
    groups = pa.array([stable_id("group", name.as_py()) for name in names.take(pa.array(roots))], pa.string())
    return _grouped(pairs, groups.take(number_N[first_E]))


def _grouped(pairs: pa.Table, groups: pa.Array) -> pa.Table:
    """The pairs with other groups."""
    return pairs.set_column(pairs.column_names.index("group_id"), pairs.schema.field("group_id"), groups)


def _joined(first_E: np.ndarray, second_E: np.ndarray, images: int, limit: int) -> np.ndarray:
    """Least image of every image's set: sets are joined in the order of the pairs, unless one grew beyond `limit`."""
    parent, size = array("q", range(images)), array("q", [1]) * images

    def root(item: int) -> int:
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    for first, second in zip(memoryview(first_E), memoryview(second_E), strict=True):
        ends = root(first), root(second)
        low, high = min(ends), max(ends)
        if low != high and size[low] + size[high] <= limit:
            parent[high] = low
            size[low] += size[high]
    return np.array([root(item) for item in range(images)], dtype=np.int64)
