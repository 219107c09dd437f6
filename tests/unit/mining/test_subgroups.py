"""VDG's subgroup mining against a brute-force twin, and what it promises: no near-duplicates, gaps, no pair twice."""

import numpy as np
import pytest

from cirray.core.seeding import numpy_generator
from cirray.features.store import FeatureInfo, FeatureStore
from cirray.mining.config import MiningConfig, MiningPolicy, SubgroupConfig
from cirray.mining.neighbours import CentredVectors
from cirray.mining.pairs import MiningInput, mine_pairs
from cirray.mining.subgroups import Limits, calibrated, links, neighbour_table, subgroup_links, walk
from cirray.triplets.pairs import to_pairs

IDS = tuple(f"img-{n:03d}" for n in range(80))
BYTES = 2**20


def store(seed=0):
    """Twenty families of four near images around a few common themes, one pair of copies among them."""
    rng = np.random.default_rng(seed)
    themes = np.repeat(rng.normal(size=(4, 1, 2, 12)), 5, axis=0).reshape(20, 1, 2, 12)
    array = themes + 0.6 * rng.normal(size=(20, 1, 2, 12)) + 0.3 * rng.normal(size=(20, 4, 2, 12))
    array = array.reshape(80, 2, 12).astype(np.float16)
    array[41] = array[40]
    return FeatureStore([array], IDS, FeatureInfo("e", "t", (2, 12)))


def vectors(memory=BYTES):
    return CentredVectors(store(), IDS, "flat", memory)


def config(**fields):
    return SubgroupConfig(**{"top_k": 12, "max_score": 0.94, "min_gap": 0.002, "size": 4, **fields})


def mine(excluded=(), **fields):
    shared = {name: fields.pop(name) for name in list(fields) if name in MiningConfig.model_fields}
    policy = MiningPolicy(kind="subgroup", settings=config(**fields))
    source = MiningInput(IDS, store(), (), frozenset(excluded))
    return to_pairs(mine_pairs(source, MiningConfig(policy=policy, **shared)))


def brute_force(settings, seed):
    """The paper's five steps (docs/PAPERS.md#neighbour-subgroups), one image and one pair at a time."""
    every = vectors().take(range(len(IDS))).astype(np.float32)
    cosine = every @ every.T
    accepted, found = [], {}
    for anchor in numpy_generator(seed, "anchors").permutation(len(IDS)).tolist():
        others = sorted((-float(cosine[anchor, j]), j) for j in range(len(IDS)) if j != anchor)[: settings.top_k]
        group, last = [anchor], None
        for score, image in others:
            if len(group) == settings.size:
                break
            too_close = last is not None and last + score < settings.min_gap
            if -score <= settings.max_score and not too_close:
                group.append(image)
                last = -score
        if len(group) < settings.size or any(len(set(group) & set(old)) > settings.max_shared for old in accepted):
            continue
        accepted.append(group)
        for a, b in links(settings.size, settings.links):
            key = tuple(sorted((group[a], group[b])))
            if cosine[key] <= settings.max_score:
                found.setdefault(key, len(accepted) - 1)
        if len(accepted) == settings.groups:
            break
    return found


@pytest.mark.parametrize("fields", [{}, {"size": 6}, {"links": "ring"}, {"min_gap": 0.02, "groups": 5}, {"seed": 3}])
def test_blockwise_mining_equals_brute_force(fields):
    seed = fields.get("seed", 0)
    own = config(**{name: value for name, value in fields.items() if name != "seed"})
    wanted = brute_force(own, seed)
    for memory in (BYTES, 8 * 24 * 7):
        found = subgroup_links(vectors(memory), own, memory, seed)
        pairs = zip(found.low.tolist(), found.high.tolist(), strict=True)
        assert dict(zip(pairs, found.group.tolist(), strict=True)) == wanted and len(found.low) == len(wanted)
    assert len(wanted) > 5


def test_no_cosine_exceeds_the_ceiling_and_steps_are_as_wide_as_the_gap():
    settings, every = config(size=5, min_gap=0.01), vectors().take(range(len(IDS)))
    targets, scores = neighbour_table(vectors(), settings, BYTES)
    limits, groups = calibrated(scores, settings), 0
    for anchor in range(len(IDS)):
        group = walk(anchor, targets[anchor], scores[anchor], 5, limits)
        cosines = [float(every[anchor] @ every[image]) for image in group[1:]]
        assert all(value <= 0.94 + 1e-6 for value in cosines)
        assert all(high - low >= 0.01 - 1e-6 for high, low in zip(cosines, cosines[1:], strict=False))
        groups += len(group) == 5
    assert groups > 20
    assert all(pair.score <= 0.94 for pair in mine(size=5))
    assert any(pair.score > 0.94 for pair in mine(size=5, max_score=1.0, min_gap=0.0))


def test_groups_have_the_size_asked_for_and_overlap_no_more_than_allowed():
    pairs = mine(size=6, links="ring", top_k=20)
    members: dict[str, set[str]] = {}
    for pair in pairs:
        members.setdefault(pair.group_id, set()).update((pair.reference_id, pair.target_id))
    assert len(members) > 3 and all(len(images) == 6 for images in members.values())
    sets = list(members.values())
    overlaps = [len(one & two) for place, one in enumerate(sets) for two in sets[:place]]
    assert max(overlaps) <= 2
    assert len(mine(size=6, links="ring", top_k=20, max_shared=6)) > len(pairs)


def test_six_images_make_a_ring_and_three_chords():
    ring = links(6, "ring")
    assert ring == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]
    assert links(6, "ring+chords")[6:] == [(0, 3), (1, 4), (2, 5)]
    assert links(2, "ring+chords") == [(0, 1)] and len(links(3, "ring+chords")) == 3
    for size in range(2, 9):
        found = [frozenset(link) for link in links(size, "ring+chords")]
        assert len(set(found)) == len(found)


def test_no_unordered_pair_comes_twice_and_both_directions_occur():
    pairs = mine(size=6, top_k=20, max_shared=6)
    keys = [frozenset((pair.reference_id, pair.target_id)) for pair in pairs]
    assert len(set(keys)) == len(keys) > 50
    rising = [pair.reference_id < pair.target_id for pair in pairs]
    assert 0.3 < sum(rising) / len(rising) < 0.7


def test_benchmark_images_are_in_no_pair_and_take_no_place_in_a_group():
    pairs = mine()
    excluded = {pair.reference_id for pair in pairs[:6]}
    without = mine(excluded=excluded)
    assert not excluded & {image for pair in without for image in (pair.reference_id, pair.target_id)}
    assert excluded & {image for pair in pairs for image in (pair.reference_id, pair.target_id)}


def test_the_same_seed_gives_the_same_pairs_and_another_one_others():
    assert mine(seed=4) == mine(seed=4)
    assert mine(seed=4) != mine(seed=5)


def test_a_limited_number_of_groups_are_the_first_of_all_groups():
    few, every = mine(groups=4), mine()
    assert len({pair.group_id for pair in few}) == 4
    assert few == [pair for pair in every if pair.rank < 4]


def test_calibrated_limits_are_quantiles_of_this_encoders_cosines():
    _, scores = neighbour_table(vectors(), config(), BYTES)
    limits = calibrated(scores, config(calibration=(0.9, 0.25)))
    assert float((scores > limits.max_score).mean()) == pytest.approx(0.1, abs=0.01)
    assert float((scores[:, :-1] - scores[:, 1:] < limits.min_gap).mean()) == pytest.approx(0.25, abs=0.02)
    assert calibrated(scores, config()) == Limits(0.94, 0.002)
    assert mine(calibration=(0.9, 0.25)) != mine()
