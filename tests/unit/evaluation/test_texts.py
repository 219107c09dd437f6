import pytest

from cirray.data.shapes.scenes import Edit, Scene, Thing, apply
from cirray.evaluation.texts import judge_generations, judge_texts
from cirray.types import Generation, Pair

EMPTY = (None,) * 7
BEFORE = Scene((Thing("red", "star", "small"), Thing("blue", "cross", "large"), *EMPTY))
AFTER = apply(Edit("recolour", 0, value="green"), BEFORE)


def test_shares_count_failed_generations_as_wrong():
    texts = ["make the star green", "make the star red", "make the star blue", "nonsense", None]
    quality = judge_texts(texts, [(BEFORE, AFTER)] * 5)
    assert (quality.exact, quality.direction, quality.parses) == (0.2, 0.6, 0.6)
    assert quality.kinds == {"recolour": 0.2} and quality.count == 5


def test_pairs_that_are_not_one_edit_apart_have_no_kind():
    far = apply(Edit("resize", 1, value="small"), AFTER)
    quality = judge_texts(["make the star green"], [(BEFORE, far)])
    assert quality.exact == 0 and quality.kinds == {}


def test_the_reverse_text_is_judged_from_target_to_reference():
    scenes = {"a": BEFORE, "b": AFTER}
    made = [Generation("p", "make the star green", "make the star red")]
    judged = judge_generations([Pair("p", "a", "b")], made, scenes)
    assert judged["forward"].exact == judged["reverse"].exact == 1
    wrong = [Generation("p", "make the star red", "make the star green")]
    judged = judge_generations([Pair("p", "a", "b")], wrong, scenes)
    assert judged["forward"].exact == judged["forward"].direction == judged["reverse"].direction == 0
    assert judged["forward"].to_dict()["kinds"] == {"recolour": pytest.approx(0.0)}
