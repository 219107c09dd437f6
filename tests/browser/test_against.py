"""A part of the reference, answers that are left out, and a picture that they should not look like."""

import numpy as np
import pytest
from kept_queries import Kept

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def model(site, retriever, visit):
    site.service = Kept(retriever)
    return site.service


def searched(one, condition):
    one.tab.wait(f"{condition} && document.querySelector('#grid.answers') && !document.querySelector('#grid').inert")


def test_an_answer_is_left_out_kept_out_of_the_next_step_and_had_back(model, user, screen):
    one = user("?image=plain/00&text=make%20it%20blue", screen)
    one.answers("make it blue")
    first = one.shown()[2]
    one.tab.click("#grid .cell:nth-child(2) .not")
    searched(one, "location.search.includes('without=') && document.querySelectorAll('#without button').length === 1")
    left = one.shown()[2]
    assert first[1] not in left and len(left) == len(first) and left[:5] == [first[0], *first[2:6]]
    assert "1 left out" in one.tab.text("#subtitle")
    assert one.tab.js("document.activeElement.closest('.cell')?.ariaPosInSet") == "2"
    other = user(one.tab.js("location.search"), screen)
    other.answers("make it blue")
    assert other.shown()[2] == left
    one.tab.click("#grid .cell:nth-child(1) .use")
    one.search("add a star")
    assert first[1] in model.asked[-1].dropped
    one.tab.click("#without button")
    searched(one, "document.querySelector('#withoutbox').hidden")
    assert first[1] not in model.asked[-1].dropped and model.asked[-1].terms[0].text == "add a star"
    one.back()
    searched(one, "document.querySelectorAll('#without button').length === 1")


def test_less_like_this_asks_away_from_a_picture_in_place_of_a_text(model, user, screen):
    one = user("?image=plain/00&text=make%20it%20blue&not=a+red+star", screen)
    one.answers("make it blue")
    away = one.shown()[2][0]
    one.tab.click("#grid .cell .open")
    one.tab.wait("document.querySelector('#large').open && !document.querySelector('#less').hidden")
    one.tab.click("#less")
    searched(one, "!document.querySelector('#unlikebox').hidden")
    terms = model.asked[-1].terms
    assert [(term.factor, term.text, term.gallery_id) for term in terms] == [
        (1.0, "make it blue", "plain/00"), (-0.5, None, away),
    ]  # fmt: skip
    assert one.tab.js("document.querySelector('#unwanted').value") == "" and "not=" not in one.tab.js("location.search")
    one.tab.click("#unlike button")
    searched(one, "document.querySelector('#unlikebox').hidden")
    assert len(model.asked[-1].terms) == 1


def test_a_model_that_cannot_be_told_a_picture_offers_no_less_like_this(model, user):
    shapes = tuple(shape for shape in model.retriever.shapes if shape != "not a picture")
    model.retriever = _Without(model.retriever, shapes)
    one = user("?image=plain/00&text=make%20it%20blue")
    one.answers("make it blue")
    assert one.tab.js("!document.querySelector('#grid .less')")
    one.tab.click("#grid .cell .open")
    one.tab.wait("document.querySelector('#large').open")
    assert one.tab.js("document.querySelector('#less').hidden && !document.querySelector('#leaveout').hidden")
    one.tab.click("#leaveout")
    searched(one, "location.search.includes('without=')")


class _Without:
    """A retriever that says it can do less."""

    def __init__(self, retriever, shapes):
        self._retriever, self.shapes = retriever, shapes

    def __getattr__(self, name):
        return getattr(self._retriever, name)


def box_of(one):
    found = one.tab.js("new URLSearchParams(location.search).get('box')")
    return found and [float(share) for share in found.split(",")]


def test_a_box_is_drawn_moved_and_taken_away_and_what_is_asked_is_that_part(model, user, upload):
    one = user()
    one.gallery()
    one.upload(upload)  # 300 x 900: it fills a third of the frame's width
    one.tab.click("#mark")
    one.tab.wait("!document.querySelector('#part').hidden")
    part, frame = one.tab.box("#part"), one.tab.box("#drop")
    assert part["width"] / part["height"] == pytest.approx(1 / 3, rel=0.02) and part["height"] <= frame["height"]
    one.tab.drag((part["x"] + 1, part["y"] + 1), (part["x"] + part["width"] - 1, part["y"] + part["height"] / 10))
    one.tab.wait("/box=0(.0\\d*)?,/.test(decodeURIComponent(location.search))")
    drawn = box_of(one)
    one.search("make it blue")
    assert drawn == pytest.approx([0, 0, 1, 0.1], abs=0.04)
    whole = model.asked[-1].terms[0].pixels_HWC
    box = one.tab.box("#box")
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    one.tab.drag(middle, (middle[0], middle[1] + part["height"] / 2))
    searched(one, f"!location.search.includes('box={','.join(f'{share:g}' for share in drawn)}')")
    assert box_of(one) == pytest.approx([drawn[0], drawn[1] + 0.5, *drawn[2:]], abs=0.03)
    assert not np.array_equal(model.asked[-1].terms[0].pixels_HWC, whole)
    one.tab.click("#mark")
    searched(one, "!location.search.includes('box=')")
    assert one.tab.js("document.querySelector('#part').hidden")


def test_a_box_is_moved_and_sized_by_keys_and_said_in_words_and_goes_with_its_picture(model, user):
    one = user("?image=plain/00&text=make%20it%20blue&box=0.25,0.25,0.5,0.5")
    one.answers("make it blue")
    assert model.asked[-1].terms[0].pixels_HWC is not None
    one.tab.wait("!document.querySelector('#part').hidden")
    one.tab.js("document.querySelector('#box').focus()")
    one.tab.press("ArrowRight")
    one.tab.press("ArrowDown", modifiers=8)
    searched(one, "location.search.includes('box=0.27')")
    assert box_of(one) == [0.27, 0.25, 0.5, 0.52]
    assert "50 % wide and 52 % high, 27 % from the left" in one.tab.js("document.activeElement.ariaLabel")
    one.tab.press("Delete")
    searched(one, "!location.search.includes('box=')")
    assert model.asked[-1].terms[0].gallery_id == "plain/00" and one.tab.js("document.activeElement.id") == "mark"
    one.back()
    searched(one, "location.search.includes('box=0.27')")
    one.tab.click("#grid .use")
    one.tab.wait("document.querySelector('#part').hidden")
    one.search("add a star")
    assert box_of(one) is None and "box%3D0.27" in one.tab.js("location.search")


def test_earlier_steps_are_kept_in_mind_where_that_is_asked_for(model, user, upload):
    one = user()
    one.gallery()
    one.upload(upload)
    one.search("make it blue")
    assert one.tab.js("document.querySelector('#keepbox').hidden")
    second = one.shown()[2][0]
    one.tab.click("#grid .use")
    one.search("add a star")
    assert len(model.asked[-1].terms) == 1
    one.tab.click("#keep")
    searched(one, "location.search.includes('keep=yes')")
    now, earlier = model.asked[-1].terms
    assert (now.gallery_id, now.text, earlier.text) == (second, "add a star", "add a star")
    assert (now.factor, earlier.factor) == pytest.approx((2 / 3, 1 / 3)) and earlier.pixels_HWC is not None
