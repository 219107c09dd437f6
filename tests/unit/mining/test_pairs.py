"""Mining policies: deterministic unordered pairs, windows respected, excluded images never in a pair."""

import numpy as np
import pytest

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError
from cirray.features.store import FeatureInfo, FeatureStore
from cirray.mining.config import POLICIES, MiningConfig
from cirray.mining.neighbours import CentredVectors
from cirray.mining.pairs import MiningInput, mine_pairs, with_groups
from cirray.triplets.pairs import pair_table, to_pairs
from cirray.types import Pair, Triplet, stable_id

IDS = tuple(f"img-{n:03d}" for n in range(48))


def families(seed=0):
    """Twelve families of four near images."""
    rng = np.random.default_rng(seed)
    array = np.repeat(rng.normal(size=(12, 1, 2, 16)), 4, axis=1) + 0.15 * rng.normal(size=(12, 4, 2, 16))
    return FeatureStore([array.reshape(48, 2, 16).astype(np.float16)], IDS, FeatureInfo("e", "t", (2, 16)))


def mine(policy="neighbour_band", ids=IDS, excluded=(), triplets=(), **fields):
    source = MiningInput(tuple(ids), families(), tuple(triplets), frozenset(excluded))
    return to_pairs(mine_pairs(source, of_policy(policy, **fields)))


def of_policy(policy, **fields):
    own = {name: fields.pop(name) for name in list(fields) if name not in MiningConfig.model_fields}
    return validate(MiningConfig, {"policy": {"kind": policy, "settings": own}, **fields})


def family(image):
    return int(image[4:]) // 4


def keys(pairs):
    return [frozenset((pair.reference_id, pair.target_id)) for pair in pairs]


def test_neighbours_are_of_one_family_and_each_pair_comes_once():
    pairs = mine(rank_high=3)
    assert len(pairs) == 12 * 6
    assert len(set(keys(pairs))) == len(pairs)
    assert all(family(pair.reference_id) == family(pair.target_id) for pair in pairs)
    assert any(family(p.reference_id) != family(p.target_id) for p in mine(rank_low=3, rank_high=6))


def test_the_answer_depends_on_neither_the_order_of_ids_nor_the_memory():
    pairs = mine(rank_high=2)
    assert mine(rank_high=2, ids=IDS[::-1]) == pairs
    assert mine(rank_high=2, memory_mib=8) == pairs


def test_mutual_pairs_are_those_found_from_both_sides():
    every, mutual = mine(rank_high=1), mine(rank_high=1, mutual=True)
    assert set(keys(mutual)) < set(keys(every))
    assert len(mutual) >= 12


def test_scores_stay_within_floor_and_ceiling():
    pairs = mine(rank_high=10, min_score=0.1, max_score=0.9)
    assert pairs and all(0.1 <= pair.score <= 0.9 for pair in pairs)
    assert any(pair.score > 0.9 for pair in mine(rank_high=10))


def test_count_keeps_the_best_ranks_and_scores_first():
    every, some = mine(rank_high=3), mine(rank_high=3, count=20)
    assert [pair.pair_id for pair in some] == [pair.pair_id for pair in every[:20]]
    assert max(pair.rank for pair in some) <= min(pair.rank for pair in every[20:])


def test_excluded_images_are_in_no_pair_by_any_policy():
    banned = {"img-000", "img-017", "img-018"}
    triplets = [Triplet("1", "img-000", "img-001", "x"), Triplet("2", "img-002", "img-003", "x")]
    for policy in POLICIES:
        pairs = mine(policy, excluded=banned, triplets=triplets)
        assert pairs and not any({pair.reference_id, pair.target_id} & banned for pair in pairs)
    assert any({pair.reference_id, pair.target_id} & banned for pair in mine())


def test_the_direction_of_a_pair_is_random_and_follows_from_the_ids():
    pairs = mine(rank_high=3)
    ascending = sum(pair.reference_id < pair.target_id for pair in pairs)
    assert 0.25 * len(pairs) < ascending < 0.75 * len(pairs)
    other = mine(rank_high=3, seed=1)
    assert set(keys(other)) == set(keys(pairs)) and [p.pair_id for p in other] != [p.pair_id for p in pairs]


def test_draws_take_some_of_the_window():
    drawn = mine(rank_high=20, draws=1)
    assert len(drawn) <= 48 and drawn == mine(rank_high=20, draws=1)
    assert {pair.rank for pair in drawn} - {0, 1, 2}
    assert keys(drawn) != keys(mine(rank_high=20, draws=1, seed=4))


def test_uniform_pairs_are_distinct_and_follow_the_seed():
    pairs = mine("uniform", count=100)
    assert len(set(keys(pairs))) == 100 and all(len(key) == 2 for key in keys(pairs))
    assert mine("uniform", count=100) == pairs != mine("uniform", count=100, seed=1)
    assert len(mine("uniform")) == 48
    assert len(mine("uniform", ids=IDS[:4], count=100)) == 6


def test_existing_pairs_are_the_triplets_each_once_and_reverse_swaps_them():
    triplets = [
        Triplet("1", "img-004", "img-005", "x", group_id="f1"),
        Triplet("2", "img-004", "img-005", "y", group_id="f1"),
        Triplet("3", "img-009", "img-008", "x", group_id="f2"),
    ]
    forward, backward = mine("existing", triplets=triplets), mine("reverse", triplets=triplets)
    assert {(p.reference_id, p.target_id, p.group_id) for p in forward} == {
        ("img-004", "img-005", "f1"), ("img-009", "img-008", "f2"),
    }  # fmt: skip
    assert {(p.target_id, p.reference_id) for p in backward} == {(p.reference_id, p.target_id) for p in forward}
    assert not {p.pair_id for p in forward} & {p.pair_id for p in backward}


def test_pairs_of_one_family_share_a_group():
    pairs = mine(rank_high=3)
    groups = {pair.group_id for pair in pairs}
    assert len(groups) == 12 and all(
        len({family(p.reference_id) for p in pairs if p.group_id == g}) == 1 for g in groups
    )


def groups_of(pairs, limit):
    made = to_pairs(with_groups(pair_table(pairs), limit))
    return {image: pair.group_id for pair in made for image in (pair.reference_id, pair.target_id)}


def test_groups_do_not_grow_beyond_their_limit_along_a_chain():
    chain = [Pair(f"p{n}", f"i{n:02d}", f"i{n + 1:02d}", score=1 - n / 100) for n in range(30)]
    groups = [pair.group_id for pair in to_pairs(with_groups(pair_table(chain), 4))]
    assert max(groups.count(group) for group in groups) <= 4
    assert set(groups_of(chain, 100).values()) == {stable_id("group", "i00")}


def test_groups_are_those_of_joining_sets_pair_by_pair():
    ends = np.random.default_rng(0).integers(0, 60, (90, 2)).tolist()
    pairs = [Pair(f"p{n:02d}", f"i{a}", f"i{b}", score=n % 7 / 7, rank=n % 3) for n, (a, b) in enumerate(ends)]
    sets = {image: {image} for pair in pairs for image in (pair.reference_id, pair.target_id)}
    for pair in sorted(pairs, key=lambda pair: (-pair.score, pair.rank, pair.pair_id)):
        one, other = sets[pair.reference_id], sets[pair.target_id]
        if one is not other and len(one) + len(other) <= 8:
            sets |= dict.fromkeys(one | other, one | other)
    found = [pair.group_id for pair in to_pairs(with_groups(pair_table(pairs), 8))]
    assert found == [stable_id("group", min(sets[pair.reference_id])) for pair in pairs]


def test_an_empty_result_images_without_features_and_unknown_policies_are_named():
    with pytest.raises(DataError, match="found no pair among 48 images"):
        mine(min_score=0.999999, max_score=1.0)
    with pytest.raises(DataError, match="1 of 49 images to pair have no features, e.g. 'ghost'"):
        mine(ids=(*IDS, "ghost"))
    with pytest.raises(ConfigError, match="Unknown mining policy 'neighbor_band'. Did you mean 'neighbour_band'"):
        mine("neighbor_band")
    with pytest.raises(DataError, match="needs features"):
        mine_pairs(MiningInput(IDS), MiningConfig())


@pytest.mark.parametrize(
    "fields", [{"rank_low": 3, "rank_high": 3}, {"quantiles": (0.8, 0.2)}, {"min_score": 0.5, "max_score": 0.4}]
)
def test_impossible_windows_are_refused(fields):
    with pytest.raises(ConfigError):
        of_policy("neighbour_band", **fields)


def naive_ranks(reference):
    """Rank of every other image in a reference's list, by a full sort."""
    vectors = CentredVectors(families(), IDS, "flat", 2**20)
    every = vectors.take(range(len(IDS)))
    row = IDS.index(reference)
    others = sorted((-float(score), n) for n, score in enumerate(every @ every[row]) if n != row)
    return {IDS[n]: rank for rank, (_, n) in enumerate(others)}


def test_rank_windows_give_each_reference_a_target_of_its_window_never_itself_never_a_real_pair():
    real = [Triplet(str(n), image, other, "x") for n, image in enumerate(IDS[:10]) for other in IDS if other != image][
        :300
    ]
    settings = {"rank_low": 20, "rank_high": 30, "draws": 1, "exclude_known": True}
    pairs = mine("rank_window", triplets=real, **settings)
    known = {(t.reference_id, t.target_id) for t in real} | {(t.target_id, t.reference_id) for t in real}
    assert len({pair.reference_id for pair in pairs}) == len(pairs) > 30
    for pair in pairs:
        rank = naive_ranks(pair.reference_id)[pair.target_id]
        assert rank == pair.rank and 20 <= rank < 30 and pair.reference_id != pair.target_id
        assert (pair.reference_id, pair.target_id) not in known
    open_to_all = mine("rank_window", triplets=real, **{**settings, "exclude_known": False})
    assert any((pair.reference_id, pair.target_id) in known for pair in open_to_all) and len(open_to_all) == 48


def test_rank_windows_follow_the_seed_and_neither_memory_nor_the_order_of_ids():
    settings = {"quantiles": (0.6, 0.9), "draws": 1}
    pairs = mine("rank_window", **settings)
    assert pairs == mine("rank_window", memory_mib=8, **settings) == mine("rank_window", ids=IDS[::-1], **settings)
    assert pairs != mine("rank_window", seed=3, **settings)
    assert {pair.rank for pair in pairs} <= set(range(int(0.6 * 47), int(0.9 * 47))) and len(
        {p.rank for p in pairs}
    ) > 5


def test_references_come_from_the_triplets_where_asked_and_their_number_is_drawn():
    labelled = [Triplet(str(n), IDS[n], IDS[n + 1], "x") for n in range(0, 20, 2)]
    pairs = mine("rank_window", triplets=labelled, references_only=True, draws=1, rank_high=40)
    assert {pair.reference_id for pair in pairs} == {t.reference_id for t in labelled}
    few = mine("rank_window", triplets=labelled, references_only=True, draws=1, rank_high=40, count=4)
    assert len(few) == 4 and {p.pair_id for p in few} < {p.pair_id for p in pairs}
    inside = mine("rank_window", triplets=labelled, triplet_images=True, draws=1, rank_high=10)
    assert {image for p in inside for image in (p.reference_id, p.target_id)} <= set(IDS[:20]) and len(inside) == 20


def test_known_pairs_are_left_out_of_any_policy_where_asked():
    every = mine(rank_high=3)
    real = [Triplet(str(n), p.target_id, p.reference_id, "x") for n, p in enumerate(every[:20])]
    left = mine(rank_high=3, triplets=real, exclude_known=True)
    assert {p.pair_id for p in left} == {p.pair_id for p in every[20:]}


def test_identical_pictures_are_one_image_where_asked():
    array = np.repeat(np.random.default_rng(0).normal(size=(6, 2, 16)).astype(np.float16), 2, axis=0)
    store = FeatureStore([array], IDS[:12], FeatureInfo("e", "t", (2, 16)))
    source = MiningInput(IDS[:12], store)
    merged = to_pairs(mine_pairs(source, of_policy("rank_window", rank_high=20, merge_identical=True)))
    assert {p.reference_id for p in merged} == set(IDS[:12:2]) == {p.target_id for p in merged}
    assert len({p.reference_id for p in to_pairs(mine_pairs(source, of_policy("rank_window", rank_high=20)))}) == 12


def test_a_recall_below_one_is_measured_and_told_for_large_sets_only(monkeypatch):
    ids = tuple(f"img-{n:03d}" for n in range(400))
    array = np.random.default_rng(0).normal(size=(400, 1, 16)).astype(np.float16)
    store = FeatureStore([array], ids, FeatureInfo("e", "t", (1, 16)))
    exact, small, large = (MiningInput(ids, store) for _ in range(3))
    wanted = to_pairs(mine_pairs(exact, of_policy("neighbour_band")))
    assert to_pairs(mine_pairs(small, of_policy("neighbour_band", recall=0.9))) == wanted
    monkeypatch.setattr("cirray.mining.pairs.APPROXIMATE_ABOVE", 300)
    found = to_pairs(mine_pairs(large, of_policy("neighbour_band", recall=0.9)))
    assert exact.metrics == small.metrics == {} and 0.9 <= large.metrics["recall"] <= 1.0
    assert len(set(keys(found)) & set(keys(wanted))) >= 0.8 * len(wanted)
