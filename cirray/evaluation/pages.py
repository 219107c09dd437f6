"""Pages from the templates beside: in HTML every value is escaped, and no page needs another file."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cirray.core.version import __version__
from cirray.evaluation.tables import percent


def render(template: str, **values: Any) -> str:
    """The page of a template, e.g. "report.html" or "card.jinja"; what the template calls by name is in `values`."""
    return _templates().get_template(template).render(values)


def asset(name: str) -> Markup:
    """The text of a style sheet or script of ours, as it stands."""
    return Markup(resources.files("cirray.evaluation").joinpath(f"templates/{name}").read_text(encoding="utf-8"))


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("cirray.evaluation"), autoescape=select_autoescape(), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.globals |= {"asset": asset, "version": __version__}
    made.filters |= {"percent": percent, "count": "{:,.0f}".format, "yaml": _yaml}
    return made


def _yaml(tree: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))
