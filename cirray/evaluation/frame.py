"""Shared parts of the reports' pages: frame, heading, tables, cells, figures, facts. Every name is escaped."""

from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from cirray.core.version import __version__
from cirray.evaluation.metrics import Spread
from cirray.evaluation.plots import inline_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROSE = 'class="card scroll prose"'
"""Attributes of a table whose first column wraps."""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page that needs no other file."""
    style = resources.files("cirray.evaluation").joinpath("templates/report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def heading(title: str, protocol: str) -> str:
    """Title and protocol."""
    return (
        f'<p class="eyebrow">cirray · composed image retrieval</p>\n<h1>{escape(title)}</h1>\n'
        f'<p class="soft">{escape(protocol)}.</p>\n'
    )


def table(names: Iterable[str], body: str, attributes: str = 'class="card scroll"') -> str:
    """A table on a card: column names, rows as HTML, attributes of the card."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    return f"<div {attributes}><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"


def cell(value: Spread, bar: bool = True) -> str:
    """A fraction in percent, with its deviation where there is one, over a bar of its length."""
    deviation = "" if value.deviation is None else f" <small>± {100 * value.deviation:.1f}</small>"
    attributes = f' class="bar" style="--v:{100 * value.mean:.1f}%"' if bar else ""
    return f"<td{attributes}>{100 * value.mean:.1f}{deviation}</td>"


def figure_card(name: str, figure: "Figure") -> str:
    """A figure under its name."""
    card = f'<figure class="card">{inline_svg(figure, name)}</figure>'
    return f'<h2>{escape(name)}</h2>\n<div class="figures wide">{card}</div>\n'


def facts(entries: Mapping[str, object], summary: str) -> str:
    """How a report was made; long entries are folded away."""
    named = {"cirray": __version__, **entries}
    items = "".join(f"<dt>{escape(name)}</dt><dd>{_fact(str(value))}</dd>\n" for name, value in named.items())
    opening = f'<h2>How this was made</h2>\n<details class="card" open><summary>{escape(summary)}</summary>'
    return f"{opening}<dl>\n{items}</dl></details>\n"


def _fact(value: str) -> str:
    lines = value.count("\n") + 1
    return escape(value) if lines <= 3 else f"<details><summary>{lines} lines</summary>{escape(value)}</details>"
