"""The runs that a recipe describes: its own, and further ones in its comment, which differ from it in a few values."""

from collections.abc import Sequence
from itertools import takewhile


def comment_of(text: str) -> list[str]:
    """The lines of the comment at a recipe's head, without `#`."""
    return [line.removeprefix("#") for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]


def runs_of(comment: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Name -> assignments of every run that a comment describes; "": the recipe as it stands.

    A line `- WHAT:` names a run; the lines after it, indented by three spaces, assign.
    """
    runs: dict[str, tuple[str, ...]] = {"": ()}
    what = ""
    for line in comment:
        if line.startswith("   "):
            runs[what] = (*runs.get(what, ()), *line.split())
        elif line.startswith(" - "):
            what = line.removeprefix(" - ").rstrip(":")
        elif what and what not in runs:
            what = f"{what} {line.strip()}".rstrip(":")
    return runs
