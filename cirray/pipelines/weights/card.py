"""The model card of an exported model: how to load it, how it was made, from what data, and its figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from cirray.core.artifacts import Manifest

_USE = {
    "retriever": """import cirray

encoder = cirray.load("{folder}")
queries = encoder.queries(["reference.png"], ["make it red"])  # [B, D]
gallery = encoder.images(["a.png", "b.png"])  # [N, tokens, D]
print(encoder.score(queries, gallery))  # [B, N]""",
    "generator": """import cirray

generator = cirray.load("{folder}")
texts = generator.generate(pairs, features)  # one Generation a pair""",
}


@dataclass(frozen=True)
class Card:
    """Content of a card."""

    name: str
    kind: str
    license: str
    notes: str
    source: Manifest
    reports: Sequence[Manifest]
    digests: Mapping[str, str]

    def text(self) -> str:
        """The card as Markdown with the metadata block that Hugging Face reads."""
        parts = [
            self._metadata(), f"# {self.name}", self.notes, _section("Use", _code(self._use(), "python")),
            _section("Figures", self._figures()), _section("Recipe", _code(_yaml(self.source.identity), "yaml")),
            _section("Data", _table(self._data())), _section("Digests", _table(dict(self.digests))),
        ]  # fmt: skip
        return "\n\n".join(part for part in parts if part) + "\n"

    def _metadata(self) -> str:
        tags = ["composed-image-retrieval", "cirray", self.kind]
        tree: dict[str, Any] = {"library_name": "cirray", "license": self.license, "tags": tags}
        return f"---\n{_yaml(tree)}---"

    def _use(self) -> str:
        return _USE[self.kind].format(folder="this-folder")

    def _figures(self) -> str:
        blocks = [_table(_scalars(self.source.metrics))] if _scalars(self.source.metrics) else []
        for report in self.reports:
            protocol, table = report.extra.get("protocol", ""), report.extra.get("table", "")
            blocks += [str(protocol), _code(str(table), "text") if table else _table(_scalars(report.metrics))]
        return "\n\n".join(block for block in blocks if block) or "No figures were recorded."

    def _data(self) -> dict[str, Any]:
        counts = {f"count: {name}": value for name, value in self.source.counts.items()}
        return {**counts, **{f"input: {name}": value for name, value in self.source.inputs.items()}}


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _yaml(tree: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True))


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _scalars(metrics: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)}
