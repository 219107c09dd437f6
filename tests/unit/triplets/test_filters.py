"""Filters: off by default, each with its reason, in the order they are named."""

import random

import pytest

from cirray.core.errors import ConfigError
from cirray.triplets.config import FilterConfig
from cirray.triplets.filters import FILTERS, triplet_filter
from cirray.triplets.schema import triplet_table
from cirray.triplets.seen import Seen


def table(*texts, references=None, scores=None):
    rows = [
        {
            "triplet_id": f"t{n}", "reference_id": references[n] if references else f"r{n}", "target_id": f"x{n}",
            "modification": text, "scores": {"pair": scores[n]} if scores else {},
        }
        for n, text in enumerate(texts)
    ]  # fmt: skip
    return triplet_table(rows)


def reasons(rows, *names, **fields):
    return triplet_filter(FilterConfig(names=names, **fields))(rows)


def test_no_filter_is_on_by_default():
    assert reasons(table("...", "x " * 99)) == [None, None]


def test_empty_drops_texts_without_a_letter():
    assert reasons(table("?!.", "ok", "7"), "empty") == ["empty: the text says nothing", None, None]


def test_over_long_counts_words():
    assert reasons(table("a b c", "a b c d"), "over_long", max_words=3) == [None, "over_long: 4 words, at most 3"]


def test_instruction_copy_ignores_case_and_punctuation_and_needs_an_instruction():
    rows = table("What has CHANGED here? a dot", "make it red")
    asked = "what has changed here"
    assert reasons(rows, "instruction_copy", instruction=asked) == ["instruction_copy: repeats the instruction", None]
    assert reasons(rows, "instruction_copy") == [None, None]


def test_duplicate_text_keeps_the_first_of_a_reference():
    rows = table("make it red", "Make it red!", "make it red", "make it blue", references=["a", "a", "b", "a"])
    dropped = "duplicate_text: an earlier row has the same reference and text"
    assert reasons(rows, "duplicate_text") == [None, dropped, None, None]
    judge = triplet_filter(FilterConfig(names=("duplicate_text",)))
    assert [judge(rows.slice(at, 1))[0] for at in (0, 1, 2, 1, 3)] == [None, dropped, None, dropped, None]


def test_what_was_seen_is_known_in_pieces_of_any_size_as_to_a_set():
    rng, seen, known, texts = random.Random(0), Seen(), set(), []
    for size in (5, 1, 40, 0, 3, 200, 7, 1):
        texts = [str(rng.randrange(150)) for _ in range(size)]
        wanted = [not (text in known or known.add(text)) for text in texts]
        assert seen.fresh(iter(texts)).tolist() == wanted
    assert len(known) > 100


def test_near_duplicate_pair_looks_at_the_cosine():
    rows = table("a", "b", "c", scores=[0.5, 0.95, 0.94])
    found = reasons(rows, "near_duplicate_pair", max_score=0.94)
    assert found == [None, "near_duplicate_pair: cosine 0.950 above 0.94", None]


def test_a_row_dropped_by_one_filter_is_unseen_by_the_next():
    rows = table("very long red thing", "very long red thing", references=["a", "a"])
    found = reasons(rows, "over_long", "duplicate_text", max_words=2)
    assert found == ["over_long: 4 words, at most 2"] * 2
    rows = table("?", "?", references=["a", "a"])
    assert reasons(rows, "duplicate_text", "empty")[0] == "empty: the text says nothing"


def test_an_unknown_filter_answers_with_the_known_ones():
    with pytest.raises(ConfigError, match="Unknown triplet filter 'emty'. Did you mean 'empty'"):
        reasons(table("a"), "emty")
    assert FILTERS.names() == ["duplicate_text", "empty", "instruction_copy", "near_duplicate_pair", "over_long"]
