"""Two galleries of a service side by side: another model over the same pictures, and pictures of other ids."""

import pytest
import tiny_service

from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.service import DirectService

pytestmark = pytest.mark.timeout(120)
IDS = "[...document.querySelectorAll('#othergrid .cell')].map(cell => cell.dataset.id)"
CAME = f"{IDS}.length && !document.querySelector('#othernote').textContent.includes('searching')"


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """Another model over the pictures of the first gallery."""
    root = tmp_path_factory.mktemp("second")
    pictures, checkpoint = (
        tiny_service.write_pictures(root / "pictures", 70, False),
        tiny_service.write_checkpoint(root / "checkpoint", seed=3),
    )
    run_index(IndexRun(checkpoint=checkpoint, images=str(pictures), out=str(root / "index")))
    return SearchEngine.open(checkpoint, str(root / "index"))


@pytest.fixture
def two(site, second, crowd, visit):
    site.further = {"second": DirectService(second), "crowd": crowd}
    return site


def choose(one, selector, value):
    one.tab.js(
        f"(e => {{e.value = '{value}'; e.dispatchEvent(new Event('change'))}})(document.querySelector('{selector}'))"
    )


def test_another_model_s_answers_stand_beside_with_what_both_have_also_by_link(two, retriever, second, user, screen):
    one = user("?image=plain/00&text=make%20it%20blue", screen)
    one.answers("make it blue")
    one.tab.wait("!document.querySelector('#besidebox').hidden")
    choose(one, "#beside", "second")
    one.tab.wait(CAME)
    mine, theirs = (engine.search("make it blue", gallery_id="plain/00", k=12).ids for engine in (retriever, second))
    assert one.tab.js(IDS) == list(theirs) and one.shown()[2] == list(mine) and mine != theirs
    both = set(mine) & set(theirs)
    assert one.tab.text("#othernote") == f"{len(both)} of 12 are answers of both"
    told = one.tab.js(
        "[...document.querySelectorAll('#grid .cell')].map(cell => cell.querySelector('.also').textContent)"
    )
    assert told == [f"↔ {theirs.index(name) + 1}" if name in both else "" for name in mine]
    left, right = one.tab.box("#grid"), one.tab.box("#othergrid")
    assert left["x"] + left["width"] <= right["x"] and abs(left["y"] - right["y"]) < 60
    assert one.tab.js("document.documentElement.scrollWidth <= innerWidth")
    other = user(one.tab.js("location.search"), screen)
    other.tab.wait(CAME)
    assert other.tab.js(IDS) == list(theirs)
    other.tab.click("#othergrid .open")
    other.tab.wait("document.querySelector('#large').open && document.querySelector('#largeframe img')?.naturalWidth")
    assert "/galleries/second/" in other.tab.js("document.querySelector('#largeframe').dataset.source")
    choose(one, "#beside", "")
    one.tab.wait("document.querySelector('#other').hidden && !location.search.includes('beside')")


def test_a_picture_that_the_other_gallery_does_not_know_is_sent_to_it(two, crowd, user):
    one = user("?image=plain/00&text=make%20it%20blue&beside=crowd")
    one.answers("make it blue")
    one.tab.wait(CAME)
    assert crowd.asked[-1] == ("upload", "make it blue") and one.tab.js(IDS)[0].startswith("all/")
    assert one.tab.text("#othernote") == "0 of 12 are answers of both"


def test_the_page_is_about_another_gallery_where_its_address_says_so(two, second, user):
    one = user()
    one.gallery()
    one.tab.wait("!document.querySelector('#homebox').hidden")
    choose(one, "#homes", "second")
    one.tab.wait("location.search === '?in=second' && document.querySelector('#homes').value === 'second'")
    one.gallery()
    one.tab.click("#grid .use")
    one.search("make it blue")
    name = one.shown()[0]
    assert tuple(one.shown()[2]) == second.search("make it blue", gallery_id=name, k=12).ids
    assert "in=second" in one.tab.js("location.search")


def test_a_service_of_one_gallery_offers_no_other(user):
    one = user()
    one.gallery()
    assert one.tab.js("document.querySelector('#homebox').hidden && document.querySelector('#besidebox').hidden")
