"""What narrows a search on the page: a filter with the counts of its columns, and a text that is not wanted."""

import pytest
import tiny_service
from kept_queries import Kept

from cirray.queries import Term
from cirray.search_engine import SearchEngine

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A gallery with metadata of half of its pictures."""
    root = tmp_path_factory.mktemp("narrow")
    lines = [
        "id,price,kind of shoe",
        *(f"plain/{n:02d},{n},{'boots' if n % 4 else 'sandals'}" for n in range(0, 24, 2)),
    ]
    (root / "m.csv").write_text("\n".join(lines))
    made = tiny_service.make(root, metadata=str(root / "m.csv"))
    return SearchEngine.open(made.checkpoint, made.index)


@pytest.fixture
def model(site, engine, visit):
    """That gallery behind the page."""
    site.service = Kept(engine)
    return site.service


def ready(one):
    one.tab.wait("document.querySelector('#grid.answers') && !document.querySelector('#grid').inert")


def test_a_filter_is_made_of_counts_and_kept_in_the_address(model, user, screen):
    one = user("?image=plain/00&text=make%20it%20blue", screen)
    one.answers("make it blue")
    one.tab.click("#narrowbox summary")
    one.tab.wait("document.querySelectorAll('#facets button').length === 2")
    assert one.tab.text("#facets button") == "boots (6)"
    one.tab.click("#facets button")
    one.tab.wait("location.search.includes('filter=')")
    ready(one)
    assert one.tab.js("document.querySelector('#filter').value") == '`kind of shoe` = "boots"'
    assert sorted(one.shown()[2]) == [f"plain/{number:02d}" for number in range(2, 24, 4)]
    one.tab.wait("document.querySelectorAll('#facets button').length === 1")
    other = user(one.tab.js("location.search"), screen)
    other.answers("make it blue")
    assert other.shown()[2] == one.shown()[2] and other.tab.js("document.querySelector('#narrowbox').open")
    one.tab.click("#facets button")
    one.tab.wait("!location.search.includes('filter=')")
    ready(one)
    assert one.tab.js("document.querySelector('#filter').value") == "" and len(one.shown()[2]) == 12
    one.back()
    one.tab.wait("document.querySelector('#filter').value !== ''")


def test_a_filter_that_is_wrong_is_told_in_the_service_s_words(model, user):
    one = user("?image=plain/00&text=make%20it%20blue&filter=prise%20%3C%205")
    one.tab.wait("document.querySelector('#complaint').textContent.includes('Did you mean')")
    assert one.tab.text("#complaint").startswith("Unknown column 'prise'. Did you mean 'price'?")


def test_what_is_not_wanted_is_asked_with_the_query_and_with_an_upload(model, user, upload):
    one = user()
    one.gallery()
    one.upload(upload)
    one.tab.click("#narrowbox summary")
    one.tab.js("document.querySelector('#unwanted').focus()")
    one.tab.type("a red star")
    one.search("make it blue")
    terms = model.asked[-1].terms
    assert [(term.factor, term.text) for term in terms] == [(1.0, "make it blue"), (-0.5, "a red star")]
    assert (
        isinstance(terms[1], Term)
        and terms[1].pixels_HWC is None
        and one.tab.js("location.search").endswith("not=a+red+star")
    )


def test_a_gallery_without_metadata_offers_no_filter(site, user):
    one = user()
    one.gallery()
    assert one.tab.js("document.querySelector('#filterbox').hidden && !document.querySelector('#unwantedbox').hidden")
