"""How the two captions of a Fashion IQ triplet become query texts (docs/PAPERS.md#fashion-iq)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Texts = tuple[tuple[str, tuple[str, ...]], ...]
"""Queries of one triplet: text, and the variants whose vectors are averaged in its place."""

_ENDS = ".?, \t\n"


@dataclass(frozen=True)
class CaptionRule:
    """A rule: its description, and the function of the two captions."""

    words: str
    queries: Callable[[str, str], Texts]


def strip_ends(caption: str) -> str:
    """The caption without stops, question marks, commas and blanks at both ends."""
    return caption.strip(_ENDS)


def joined(first: str, second: str) -> str:
    """CLIP4CIR's text: ends stripped, the first capitalised (its rest lower-cased), joined with " and "."""
    return f"{strip_ends(first).capitalize()} and {strip_ends(second)}"


def four_ways(first: str, second: str) -> tuple[str, str, str, str]:
    """CLIP4CIR's training texts, of which it draws one evenly: both orders, the first alone, the second alone."""
    alone = (strip_ends(first).capitalize(), strip_ends(second).capitalize())
    return joined(first, second), joined(second, first), *alone


def _averaged(first: str, second: str) -> Texts:
    one, two = strip_ends(first), strip_ends(second)
    orders = (f"{one} and {two}", f"{two} and {one}")
    return ((orders[0], orders),)


def _plain(texts: Sequence[str]) -> Texts:
    return tuple((text, ()) for text in texts)


RULES: dict[str, CaptionRule] = {
    "clip4cir": CaptionRule(
        'ends stripped, first capitalised, joined with "and"', lambda one, two: _plain([joined(one, two)])
    ),
    "plain_and": CaptionRule('raw, joined with "and"', lambda one, two: _plain([f"{one} and {two}"])),
    "reverse_and": CaptionRule('raw, second "and" first', lambda one, two: _plain([f"{two} and {one}"])),
    "both_averaged": CaptionRule("both orders, ends stripped, vectors averaged", _averaged),
    "both_separate": CaptionRule(
        "both orders as two queries", lambda one, two: _plain([f"{one} and {two}", f"{two} and {one}"])
    ),
    "each_alone": CaptionRule(
        "each caption a query, empty ones dropped",
        lambda one, two: _plain([text for text in (one, two) if text.strip()]),
    ),
}
"""Id of a rule -> the rule. Only `each_alone` treats empty captions specially."""
