"""Models that weigh the text against the picture, or search by one of them alone: what the page then offers."""

import published
import pytest
import tiny_service
from kept_queries import Kept

from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine

pytestmark = pytest.mark.timeout(120)


class Weighed(Kept):
    """Remembers what was asked: the fields of each query that were given."""

    def noted(self, query):
        first = query.terms[0]
        uploaded = first.gallery_id is None and first.pixels_HWC is not None
        fields = {
            "gallery_id": first.gallery_id, "image": "upload" if uploaded else None, "text": first.text,
            "weight": first.share,
        }  # fmt: skip
        return {name: value for name, value in fields.items() if value is not None}


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A small CLIP that was not trained to compose, over the same pictures as the other tests."""
    home = tmp_path_factory.mktemp("published")
    tiny_service.write_pictures(home / "pictures", 70, False)
    published.clip(home / "clip")
    out = str(home / "index")
    manifest = run_index(IndexRun(root=str(home), model=str(home / "clip"), images=str(home / "pictures"), out=out))
    return SearchEngine.open(manifest.config["checkpoint"], out)


@pytest.fixture
def model(site, engine, visit):
    """That CLIP behind the page."""
    site.service = Weighed(engine)
    return site.service


def slide(one, weight):
    """Move the slider as a finger or a mouse does: told while it moves, and once it is let go."""
    one.tab.js(
        f"{{ const s = document.querySelector('#weight'); s.value = {weight};"
        "s.dispatchEvent(new Event('input', {bubbles: true})); s.dispatchEvent(new Event('change', {bubbles: true})); }"
    )


def test_the_weight_of_the_text_is_moved_by_a_slider_and_asks_again(model, user, screen):
    one = user("?image=plain/00", screen)
    one.gallery()
    assert one.tab.js("document.querySelector('#weightbox').hidden")  # nothing to weigh yet
    one.search("make it blue")
    assert model.asked == [{"gallery_id": "plain/00", "text": "make it blue"}]
    one.tab.js("document.querySelector('#weight').scrollIntoView({block: 'center'})")
    assert one.tab.visible("#weight") and one.tab.text("#weighs") == "text 50 %"
    before = one.tab.js("history.length")
    slide(one, 0.8)
    one.answers("make it blue")
    assert model.asked[1:] == [{"gallery_id": "plain/00", "text": "make it blue", "weight": 0.8}]
    assert one.tab.text("#weighs") == "text 80 %" and "weight=0.8" in one.tab.js("location.search")
    assert one.tab.js("history.length") == before  # the same step, weighed anew
    one.tab.reload()
    one.answers("make it blue")
    assert one.tab.text("#weighs") == "text 80 %" and model.asked[2] == model.asked[1]
    one.tab.click("#usual")
    one.tab.wait("!location.search.includes('weight')")
    one.answers("make it blue")
    assert model.asked[3] == model.asked[0] and one.tab.js("document.querySelector('#usual').hidden")


def test_a_weight_goes_with_its_step_and_with_an_uploaded_picture(model, user, upload):
    one = user("?image=plain/00&text=make%20it%20blue&weight=0.25")
    one.answers("make it blue")
    assert model.asked == [{"gallery_id": "plain/00", "text": "make it blue", "weight": 0.25}]
    one.tab.click("#grid .use")
    one.write("add a star")
    slide(one, 1)
    assert len(model.asked) == 1  # a new question is asked when it is complete
    one.tab.click("#submit")
    one.answers("add a star")
    assert model.asked[1]["weight"] == 1
    one.tab.click("#trail li:first-child button")
    one.answers("make it blue")
    assert one.tab.text("#weighs") == "text 25 %"
    slide(one, 0.5)
    one.tab.wait("!location.search.includes('weight=0.25')")
    assert one.trail() == ["[make it blue]", "add a star"]  # what came after stays
    one.upload(upload)
    slide(one, 0.1)
    one.search("turn it green")
    assert model.asked[-1] == {"image": "upload", "text": "turn it green", "weight": 0.1}


def test_a_model_that_cannot_be_weighed_shows_no_slider(site, user):
    one = user("?image=plain/00&text=make%20it%20blue&weight=0.25")
    one.answers("make it blue")
    assert one.tab.js("document.querySelector('#weightbox').hidden")
    assert site.asked == [("plain/00", "make it blue")]


def test_a_text_alone_and_a_picture_alone_are_searched_where_the_model_can(model, user):
    one = user()
    one.gallery()
    assert one.tab.text("#asked") == "Look for"
    one.search("a red dress")
    assert model.asked == [{"text": "a red dress"}] and one.tab.js("location.search") == "?text=a+red+dress"
    second = one.shown()[2][1]
    one.tab.click("#grid .cell:nth-child(2) .use")
    assert one.tab.text("#asked") == "Change" and one.trail() == ["[a red dress]", "..."]
    one.tab.click("#submit")
    one.tab.wait("document.querySelector('#title').textContent === 'Like this picture'")
    one.tab.wait("!document.querySelector('#grid').inert")
    assert model.asked[1] == {"gallery_id": second} and "Like" not in one.tab.js("location.search")
    assert [text.startswith("[like ") for text in one.trail()] == [False, True]
    link = one.tab.js("location.search")
    other = user(link)
    other.tab.wait("document.querySelectorAll('#trail button').length === 2")
    other.tab.click("#trail li:first-child button")
    other.answers("a red dress")
    one.tab.reload()
    one.tab.wait("document.querySelector('#title').textContent === 'Like this picture'")


def test_where_the_model_needs_both_the_page_asks_for_both(site, user):
    one = user("?text=a%20red%20dress")
    one.gallery()
    assert one.shown()[:2] == ["", "a red dress"] and site.asked == []
    one.tab.click("#submit")
    one.tab.wait("document.querySelector('#complaint').textContent.includes('Pick a reference')")
    one.tab.click("#grid .use")
    one.write(" ")
    one.tab.click("#submit")
    one.tab.wait("document.querySelector('#complaint').textContent.includes('Say what should be different')")
    assert site.asked == []
