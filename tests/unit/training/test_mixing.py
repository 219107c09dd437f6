"""How real and pseudo rows share batches: counts, equal parts on ranks, and everything a function of (seed, step)."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from cirray.core.errors import ConfigError
from cirray.training.config import MIXERS, TrainingConfig
from cirray.training.mixing import Curriculum, PairTexts, Rows, interleave, share
from cirray.training.sampler import BLOCK_ROWS, group_numbers
from cirray.triplets.rows import TripletRows
from cirray.types import Triplet


def rows(real=20, pseudo=30, group_of=lambda row: ""):
    names = pa.chunked_array([[group_of(row) for row in range(real + pseudo)]], pa.string())
    return Rows(group_numbers(names), np.arange(real + pseudo) < real)


def mixer(name, given, **fields):
    own = {key: fields.pop(key) for key in ("ratio", "shares") if key in fields}
    mixing = {"kind": name, "settings": own}
    config = TrainingConfig.model_validate({"mixing": mixing, "batch": 8, "one_per_group": False, **fields})
    return MIXERS.get(name)(given, config, config.mixing.settings)


def counts(numbers, real=20):
    found = Counter(bool(row < real) for row in numbers)
    return found[True], found[False]


@pytest.mark.parametrize(("ratio", "pseudo"), [(1.0, 8), (0.5, 4), (0.25, 2), (1.5, 12), (0.0, 0)])
def test_paired_batches_hold_so_many_pseudo_rows_for_each_real_one(ratio, pseudo):
    paired = mixer("paired", rows(), ratio=ratio)
    assert all(counts(paired.rows(step)) == (8, pseudo) for step in range(7))
    assert TrainingConfig(batch=8, mixing={"kind": "paired", "settings": {"ratio": ratio}}).rows_per_step == 8 + pseudo


def test_real_rows_come_once_an_epoch_and_pseudo_rows_with_replacement():
    paired = mixer("paired", rows(real=16, pseudo=5))
    epoch = np.concatenate([paired.rows(step) for step in (0, 1)])
    assert sorted(epoch[epoch < 16]) == list(range(16))
    assert max(Counter(paired.rows(0)[paired.rows(0) >= 16].tolist()).values()) > 1


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", ["paired", "curriculum", "concat"])
def test_ranks_share_the_global_batch_and_paired_ones_hold_equal_parts_of_each_kind(name, world):
    made = mixer(name, rows(), steps=10)
    for step in range(5):
        parts = [made.rows(step, rank, world) for rank in range(world)]
        assert np.concatenate(parts).tolist() == made.rows(step).tolist()
        if name == "paired":
            assert {counts(part) for part in parts} == {(8 // world, 8 // world)}


@pytest.mark.parametrize("name", ["paired", "curriculum", "concat"])
def test_rows_are_a_function_of_seed_and_step_whatever_was_asked_before(name):
    used, fresh = mixer(name, rows(), steps=10), mixer(name, rows(), steps=10)
    for step in (0, 3, 9, 2):
        used.rows(step)
    assert used.rows(5).tolist() == fresh.rows(5).tolist()
    assert mixer(name, rows(), steps=10, seed=1).rows(5).tolist() != fresh.rows(5).tolist()


def test_a_curriculum_moves_from_pseudo_to_real_rows():
    made = mixer("curriculum", rows(), steps=9, shares=(0.0, 1.0))
    assert isinstance(made, Curriculum)
    assert [counts(made.rows(step))[0] for step in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert counts(made.rows(50)) == (8, 0)
    still = mixer("curriculum", rows(), steps=9, shares=(0.5, 0.5))
    assert {counts(still.rows(step)) for step in range(9)} == {(4, 4)}


def test_with_one_row_of_a_group_a_batch_repeats_no_group_of_either_kind():
    given = rows(real=24, pseudo=24, group_of=lambda row: f"{'r' if row < 24 else 'p'}{row // 3}")
    made = mixer("paired", given, one_per_group=True, batch=4)
    for step in range(6):
        assert len({given.group_M[row] for row in made.rows(step)}) == 8
    loose = mixer("paired", given, one_per_group=False, batch=4)
    assert any(len({given.group_M[row] for row in loose.rows(step)}) < 8 for step in range(20))


def windows_of(numbers, real):
    """Blocks of pseudo rows that a step read."""
    return {int(row - real) // BLOCK_ROWS for row in numbers if row >= real}


@pytest.mark.parametrize(("name", "fields"), [("paired", {}), ("curriculum", {"shares": (0.5, 0.5)})])
def test_pseudo_rows_of_a_large_store_come_from_one_window_at_a_time_and_all_get_their_turn(name, fields):
    real, pseudo = 64, 8 * BLOCK_ROWS
    given = rows(real, pseudo)
    made = mixer(name, given, batch=64, shuffle_rows=2 * BLOCK_ROWS, **fields)
    stay = 2 * BLOCK_ROWS // 64
    read = [set().union(*(windows_of(made.rows(step), real) for step in range(at, at + stay))) for at in
            range(0, 4 * stay, stay)]  # fmt: skip
    assert [len(blocks) for blocks in read] == [2, 2, 2, 2] and set().union(*read) == set(range(8))
    assert max(read[0]) - min(read[0]) > 1 or max(read[1]) - min(read[1]) > 1  # dealt from all over the store
    later = mixer(name, given, batch=64, shuffle_rows=2 * BLOCK_ROWS, **fields)
    assert later.rows(3 * stay + 5).tolist() == made.rows(3 * stay + 5).tolist()
    whole = mixer(name, given, batch=64, shuffle_rows=real + pseudo, **fields)
    assert len(set().union(*(windows_of(whole.rows(step), real) for step in range(stay)))) == 8


def test_mixing_needs_both_kinds_of_rows_and_says_which_is_missing():
    with pytest.raises(ConfigError, match="none of the 20 rows is a pseudo one"):
        mixer("paired", rows(pseudo=0))
    with pytest.raises(ConfigError, match="real one.*real_sources"):
        mixer("curriculum", rows(real=0))
    assert mixer("paired", rows(pseudo=0), ratio=0.0).rows(0).size == 8


def test_a_mixed_batch_that_does_not_divide_by_the_workers_is_refused():
    with pytest.raises(ConfigError, match="10 rows does not divide by 4 workers"):
        mixer("paired", rows(), ratio=0.25).rows(0, 0, 4)
    assert share(np.arange(8), 3, 4).tolist() == [6, 7]


def test_interleaved_rows_are_all_there_and_evenly_spread():
    mixed = interleave(np.arange(4), np.arange(100, 112))
    assert sorted(mixed) == [*range(4), *range(100, 112)]
    assert [sum(part < 100) for part in mixed.reshape(4, 4)] == [1, 1, 1, 1]
    assert interleave(np.arange(3), np.empty(0, dtype=np.int64)).tolist() == [0, 1, 2]


HUMAN = [Triplet("h1", "a", "b", "make it red"), Triplet("h2", "c", "d", "add blue")]
DELTAS = [
    Triplet("g1", "a", "b", "turn it red", source="vdg"), Triplet("g2", "b", "a", "undo", source="vdg"),
    Triplet("g3", "e", "f", "other", source="vdg"),
]  # fmt: skip


def folded(rows, **fields):
    return PairTexts(TripletRows.of(rows), TrainingConfig(pair_texts="drawn", **fields))


def visited(texts, number, steps):
    return [texts.visit(np.array([number]), step)[0] for step in steps]


def test_a_second_text_of_a_human_pair_is_drawn_at_random_by_seed_and_step():
    texts = folded([*HUMAN, *DELTAS])
    assert [row.triplet_id for row in texts.rows] == ["h1", "h2", "g2", "g3"]
    drawn = [row.modification for row in visited(texts, 0, range(200))]
    share_of_human = drawn.count("make it red") / 200
    assert set(drawn) == {"make it red", "turn it red"} and 0.35 < share_of_human < 0.65
    again = visited(folded([*HUMAN, *DELTAS]), 0, range(199, -1, -1))
    assert [row.modification for row in again] == drawn[::-1]
    assert {row.modification for row in visited(texts, 1, range(50))} == {"add blue"}
    together = texts.visit(np.array([1, 0, 3]), 7)
    assert [row.triplet_id for row in together] == ["h2", "h1", "g3"] and together[1].modification == drawn[7]


def drawn_texts(rows, row, count=400, **fields):
    texts = folded(rows, **fields)
    drawn = [made.modification for made in visited(texts, [*texts.rows].index(row), range(count))]
    return {text: drawn.count(text) / count for text in set(drawn)}


def test_both_templates_of_a_generated_pair_are_one_row_of_which_each_visit_draws_one():
    """SPN keeps two texts of a CIRR row; released code fixes none."""
    both = [Triplet(name, "a", "b", f"template {name}", source="spn", weight=0.5) for name in ("0", "1")]
    row = replace(both[0], weight=1.0)
    shares = drawn_texts([*both, *HUMAN[1:]], row)
    assert set(shares) == {"template 0", "template 1"} and all(0.4 < share < 0.6 for share in shares.values())


def test_four_ways_of_a_human_text_and_a_generated_one_are_drawn_by_their_weights():
    """Fashion IQ: a quarter each of the human half, and the folded row weighs as much as a row of any other pair."""
    ways = [Triplet(f"h-{number}", "a", "b", f"way {number}", weight=0.25) for number in range(4)]
    row = replace(ways[0], weight=1.0)
    shares = drawn_texts([Triplet("g", "a", "b", "delta", source="vdg"), *ways], row)
    assert len(shares) == 5 and 0.4 < shares.pop("delta") < 0.6 and all(0.06 < x < 0.19 for x in shares.values())
    assert len(drawn_texts(ways, row)) == 4


def test_the_reverse_text_is_the_drawn_texts_own_where_it_has_one():
    rows = [
        Triplet("h", "a", "b", "make it red", "make it blue"), Triplet("g", "a", "b", "redden", "bluish", source="vdg"),
        Triplet("k", "a", "b", "red now", source="vdg"),
    ]  # fmt: skip
    found = {(row.modification, row.reverse_modification) for row in visited(folded(rows), 0, range(60))}
    assert found == {("make it red", "make it blue"), ("redden", "bluish"), ("red now", "make it blue")}


def test_without_drawing_every_text_is_a_row_of_its_own():
    texts = PairTexts(TripletRows.of([*HUMAN, *DELTAS]), TrainingConfig())
    assert [*texts.rows] == [*HUMAN, *DELTAS]
    assert visited(texts, 0, range(20)) == [HUMAN[0]] * 20


def test_a_resumed_task_sees_the_batches_of_an_unbroken_one(make_task, triplets):
    second = [replace(row, triplet_id=f"{row.triplet_id}+", source="vdg", modification="round") for row in triplets[:6]]
    given = [*triplets[:12], *(replace(row, source="vdg") for row in triplets[12:]), *second]
    fields = {"rows": given, "mixing": "paired", "pair_texts": "drawn", "batch": 4, "one_per_group": False}
    task, other = make_task(**fields)[0], make_task(**fields)[0]
    unbroken = task.batches(0, 0, 1)
    for _ in range(3):
        next(unbroken)
    resumed = other.batches(3, 0, 1)
    for _ in range(5):
        mine, theirs = next(unbroken), next(resumed)
        assert mine.text.ids_BT.tolist() == theirs.text.ids_BT.tolist()
        assert mine.target_key_B.tolist() == theirs.target_key_B.tolist()
        assert mine.real_B.sum() == 4 and len(mine.real_B) == 8
