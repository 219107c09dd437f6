import numpy as np
import pytest

from cirray.data.config import ShapesConfig
from cirray.data.shapes.corpus import bags, caption_bags, difference_bags, passage, reserved_change, reserved_scene
from cirray.data.shapes.grammar import caption
from cirray.data.shapes.judge import judge, parse
from cirray.data.shapes.world import families

INSTRUCTION = "what changed"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("seed", [0, 7, 123])
def test_no_world_of_any_seed_holds_a_scene_of_the_corpus(seed):
    config = ShapesConfig(
        seed=seed, labelled_families=5, heldout_families=5, pool_families=5, gallery_references=3, edits_per_reference=4
    )
    scenes = {scene for family in families(config) for _, scene in family.members()}
    assert len(scenes) > 60 and not any(scene.reserved for scene in scenes)


def test_the_corpus_draws_reserved_scenes_alone(rng):
    assert all(reserved_scene(rng, twins=0.5).reserved for _ in range(20))
    changes = [reserved_change(rng, twins=0.5) for _ in range(40)]
    assert all(change.reference.reserved and change.target.reserved for change in changes)


def test_texts_of_changes_are_true_in_both_directions(rng):
    for _ in range(60):
        change = reserved_change(rng, twins=0.3)
        back = change.reversed()
        assert judge(change.text(rng), change.reference, change.target).exact
        assert judge(back.text(rng), back.reference, back.target).exact


def test_a_swap_names_the_first_object_in_reading_order_first(rng):
    for _ in range(20):
        change = reserved_change(rng, swaps=1.0)
        first = parse(change.text(rng)).names[0].cells(change.reference)
        assert change.edit.kind == "swap" and first == [min(change.edit.cell, change.edit.other)]


def test_twins_make_shared_names_common(rng):
    def shared(twins):
        scenes = [reserved_scene(rng, twins=twins) for _ in range(150)]
        things = [[scene.cells[cell][:2] for cell in scene.occupied] for scene in scenes]
        return sum(len(set(names)) < len(names) for names in things)

    assert shared(1.0) > 2 * shared(0.0) + 20


def test_bags_of_a_caption_are_the_bags_of_its_scene(rng):
    for _ in range(20):
        scene = reserved_scene(rng)
        assert [sorted(bag) for bag in caption_bags(caption(scene, rng))] == [sorted(bag) for bag in bags(scene)]
    assert caption_bags("a dog on a beach") is None


def test_marks_and_difference_slots_tell_which_cells_changed(rng):
    marked = [found for found in (passage(rng, INSTRUCTION) for _ in range(40)) if found.marks]
    for found in marked:
        first, second = found.images
        changed = [int(one != other) for one, other in zip(first, second, strict=True)]
        assert [mark[0] for mark in found.marks] == changed and 1 <= sum(changed) <= 2
        assert [bag != ("same",) for bag in found.difference] == [bool(mark) for mark in changed]
        assert found.prompt == INSTRUCTION
    assert 25 < len(marked) < 40


def test_difference_slots_hold_both_states_of_a_changed_cell(rng):
    change = reserved_change(rng)
    slots = difference_bags(bags(change.reference), bags(change.target))
    reverse = difference_bags(bags(change.target), bags(change.reference))
    assert [sorted(slot) for slot in slots] == [sorted(slot) for slot in reverse]
    for slot, old, new in zip(slots, bags(change.reference), bags(change.target), strict=True):
        assert slot == ("same",) if old == new else {"from", "to", *old, *new} == set(slot)
