"""The reference of a search on the command line: a picture, or a gallery id however it was typed."""

import pytest

from cirray.core.errors import DataError
from cirray.pipelines.search.config import SearchRun
from cirray.pipelines.search.search import Answer, reference
from cirray.results import Result, Results

IDS = ("a b", "a\u00a0b", "line\nbreak", "Zoe\u0308", "caf%E9")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("a b", 0), ("a\u00a0b", 1), ("line break", 2), ("Zoë.JPG", 3), ("caf\udce9", 4), ("nothing like it", None)],
)
def test_an_id_is_found_as_written_or_as_it_is_typed(typed, meant):
    assert reference(SearchRun(id=typed, text="x"), IDS) == (None, typed if meant is None else IDS[meant])


def test_an_ambiguous_id_and_two_references_are_refused():
    with pytest.raises(DataError, match="may be 'a b' or 'a.xa0b'"):
        reference(SearchRun(id="a%20b", text="x"), IDS)
    with pytest.raises(DataError, match="one reference.* both were given"):
        reference(SearchRun(id="a", image="b.png", text="x"), IDS)


def test_a_search_for_nothing_is_told_a_query_that_is_answered_well():
    with pytest.raises(DataError, match="e.g. --id 'a b' --text 'make it blue'[.]$"):
        reference(SearchRun(), IDS, [("a b", "make it blue"), ("c", "y")])


def test_an_answer_is_one_line_whatever_its_name():
    text = Answer(Results((Result("line\nbreak", 0.5), Result("é", 0.25))), "page.html").text()
    assert text.splitlines()[:2] == ["  1  0.5000  line\\nbreak", "  2  0.2500  é"]
