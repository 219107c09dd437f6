from collections import Counter

import numpy as np
import pytest

from cirray.core.errors import DataError
from cirray.data.shapes.grammar import (
    TEMPLATES,
    caption,
    modification,
    names,
    phrases,
    true_text,
    vocabulary,
)
from cirray.data.shapes.judge import judge, parse
from cirray.data.shapes.render import render, render_array
from cirray.data.shapes.scenes import (
    CELLS,
    COLOURS,
    EDITS,
    PLACES,
    SHAPES,
    SIZES,
    Edit,
    Scene,
    Thing,
    apply,
    difference,
    feasible_kinds,
    inverse,
    random_edit,
    random_scene,
)


def scene_of(**things):
    """scene_of(top_left="small red star", ...)"""
    cells = [None] * CELLS
    for place, words in things.items():
        size, colour, shape = words.split()
        cells[PLACES.index(place.replace("_", " "))] = Thing(colour, shape, size)
    return Scene(tuple(cells))


STAR_AND_CIRCLE = scene_of(top_left="small red star", middle_centre="large blue circle")


def changes(count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        scene = random_scene(rng)
        edit = random_edit(scene, rng)
        yield scene, edit, apply(edit, scene), rng


def test_the_world_has_eight_colours_six_shapes_two_sizes_nine_places_and_seven_edits():
    assert [len(names) for names in (COLOURS, SHAPES, SIZES, PLACES, EDITS)] == [8, 6, 2, 9, 7]


def test_every_edit_is_undone_by_its_inverse_and_found_by_difference():
    kinds = Counter()
    for scene, edit, target, _ in changes(1000):
        kinds[edit.kind] += 1
        assert apply(inverse(edit, scene), target) == scene
        assert apply(difference(scene, target), scene) == target
        assert difference(scene, target).kind == edit.kind
        assert 2 <= len(target.occupied) <= 5
    assert set(kinds) == set(EDITS)


def test_two_edits_in_a_row_are_rarely_one_difference_and_equal_scenes_never(rng):
    two = [apply(random_edit(target, generator), target) for _, _, target, generator in changes(300)]
    single = sum(difference(scene, far) is not None for (scene, *_), far in zip(changes(300), two, strict=True))
    assert single < 300 / 2
    assert difference(STAR_AND_CIRCLE, STAR_AND_CIRCLE) is None
    thing = Thing("red", "star", "large")
    assert difference(scene_of(top_left="small red star"), Scene((thing._replace(colour="blue"), *[None] * 8))) is None


@pytest.mark.parametrize(
    "edit",
    [
        Edit("remove", 1),
        Edit("remove", 0),
        Edit("add", 0, thing=Thing("red", "star", "small")),
        Edit("add", 1),
        Edit("recolour", 0, value="red"),
        Edit("recolour", 0, value="star"),
        Edit("move", 0, other=4),
        Edit("swap", 0, other=1),
        Edit("swap", 0),
    ],
    ids=str,
)
def test_an_edit_that_does_not_fit_is_refused_in_words(edit):
    with pytest.raises(DataError, match="cannot be applied"):
        apply(edit, STAR_AND_CIRCLE)


def test_kinds_that_are_not_possible_are_refused(rng):
    assert "remove" not in feasible_kinds(STAR_AND_CIRCLE) and "add" in feasible_kinds(STAR_AND_CIRCLE)
    with pytest.raises(DataError, match="not possible"):
        random_edit(STAR_AND_CIRCLE, rng, "remove")
    with pytest.raises(DataError, match="Did you mean 'recolour'"):
        random_edit(STAR_AND_CIRCLE, rng, "recolor")
    twins = scene_of(top_left="small red star", top_right="small red star")
    assert "swap" not in feasible_kinds(twins)


def test_scenes_survive_json_and_bad_values_are_refused(rng):
    scene = random_scene(rng)
    assert Scene.from_json(scene.to_json()) == scene and hash(Scene.from_json(scene.to_json())) == hash(scene)
    for bad in ([None] * 8, [["red", "star", "huge"], *[None] * 8], "text", [["red"], *[None] * 8]):
        with pytest.raises(DataError):
            Scene.from_json(bad)


def test_2000_true_texts_are_all_exact_in_both_directions():
    for scene, edit, target, rng in changes(2000, seed=1):
        forward = judge(modification(scene, edit, rng), scene, target)
        reverse = judge(modification(target, inverse(edit, scene), rng), target, scene)
        assert forward.exact and forward.direction, (scene, edit)
        assert reverse.exact and reverse.direction, (scene, edit)


def test_a_text_of_the_other_direction_is_reversed_and_never_exact_but_for_swaps_that_tell_both():
    for scene, edit, target, rng in changes(500, seed=2):
        verdict = judge(modification(scene, edit, rng), target, scene)
        if edit.kind == "swap":
            assert verdict.exact or verdict.reversed
        else:
            assert verdict.reversed and not verdict.direction and not verdict.exact


def test_texts_of_other_edits_are_never_exact():
    for scene, _, target, rng in changes(500, seed=3):
        other = random_edit(scene, rng)
        if apply(other, scene) != target:
            assert not judge(modification(scene, other, rng), scene, target).exact


def test_every_name_means_exactly_one_object_and_ambiguous_ones_are_not_used():
    pair = scene_of(top_left="small red star", top_right="large red star", bottom_left="small blue star")
    assert "the star" not in names(pair, 0) and "the red star" not in names(pair, 0)
    assert "the blue star" in names(pair, 6) and "the star" not in names(pair, 6)
    assert "the star" in names(STAR_AND_CIRCLE, 0)
    target = apply(Edit("recolour", 0, value="cyan"), pair)
    assert judge("paint the object in the top left cyan", pair, target).exact
    assert judge("paint the red star cyan", pair, target) == judge("make the star cyan", pair, target)
    assert not judge("paint the red star cyan", pair, target).exact


@pytest.mark.parametrize(
    "text", ["", "make", "make the red star", "make the red star blue please", "add a red star", "paint the sky blue"]
)
def test_sentences_outside_the_grammar_do_not_parse(text):
    assert parse(text) is None
    verdict = judge(text, STAR_AND_CIRCLE, STAR_AND_CIRCLE)
    assert not verdict.parses and not verdict.exact


def test_every_template_parses_as_its_own_kind_only():
    slots = dict(
        object="the red star",
        partner="the circle",
        colour="blue",
        shape="cross",
        size="large",
        comparative="larger",
        thing="large white cross",
        place="top left",
    )
    for kind, templates in TEMPLATES.items():
        assert len(templates) >= 3
        for template in templates:
            assert parse(template.format(**slots)).kind == kind


def test_a_swap_names_two_objects():
    target = apply(Edit("swap", 0, other=4), STAR_AND_CIRCLE)
    assert judge("swap the star and the middle centre object", STAR_AND_CIRCLE, target).exact
    assert judge("swap the star and the circle", target, STAR_AND_CIRCLE) == judge(
        "swap the star and the circle", STAR_AND_CIRCLE, target
    )
    assert judge("swap the star and the middle centre object", target, STAR_AND_CIRCLE).reversed
    assert not judge("swap the star and the red star", STAR_AND_CIRCLE, target).exact


def test_every_word_is_in_the_vocabulary_and_every_vocabulary_word_is_used():
    seen = set()
    for scene, edit, _, rng in changes(2000, seed=4):
        seen |= set(f"{modification(scene, edit, rng)} {caption(scene, rng)} {' '.join(phrases(scene))}".split())
    assert seen == set(vocabulary()) and 50 <= len(seen) <= 80


def test_phrases_name_the_nine_cells_in_order():
    found = phrases(STAR_AND_CIRCLE)
    assert found[0] == "small red star" and found[4] == "large blue circle" and found.count("empty") == 7


def test_a_caption_names_every_object_with_its_place(rng):
    scene = random_scene(rng)
    text = caption(scene, rng)
    for cell in scene.occupied:
        assert PLACES[cell] in text and phrases(scene)[cell] in text


def test_true_texts_exist_for_single_edits_only(rng):
    target = apply(Edit("move", 0, other=8), STAR_AND_CIRCLE)
    assert judge(true_text(STAR_AND_CIRCLE, target, rng), STAR_AND_CIRCLE, target).exact
    assert true_text(STAR_AND_CIRCLE, STAR_AND_CIRCLE, rng) is None


def test_rendering_depends_on_scene_and_seed_alone():
    pixels = render_array(STAR_AND_CIRCLE, 5)
    assert pixels.shape == (48, 48, 3) and pixels.dtype == np.uint8
    assert np.array_equal(pixels, render_array(STAR_AND_CIRCLE, 5))
    assert not np.array_equal(pixels, render_array(STAR_AND_CIRCLE, 6))
    assert render(STAR_AND_CIRCLE, 5, 96).size == (96, 96)


def test_an_object_is_drawn_in_its_cell_and_empty_cells_are_noise():
    pixels = render_array(STAR_AND_CIRCLE, 1).astype(float)
    blue = pixels[20:28, 20:28].reshape(-1, 3).mean(0)
    assert blue[2] > 200 and blue[0] < 100
    empty = pixels[32:, 32:]
    assert empty.std() < 8 and 25 < empty.mean() < 75


def test_all_objects_look_different_by_more_than_noise():
    def mean_picture(thing):
        cells = (None, None, None, None, thing, None, None, None, None)
        return np.mean([render_array(Scene(cells), seed)[14:34, 14:34] for seed in range(12)], axis=0)

    pictures = {(shape, size): mean_picture(Thing("white", shape, size)) for shape in SHAPES for size in SIZES}
    looks = list(pictures)
    for i, a in enumerate(looks):
        for b in looks[:i]:
            assert np.abs(pictures[a] - pictures[b]).mean() > 4, (a, b)
