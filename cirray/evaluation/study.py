"""A study's report: methods in one table over seeds, expectations confirmed or refuted, curves; as text and page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from cirray.evaluation.metrics import Spread, spread
from cirray.evaluation.pages import render
from cirray.evaluation.plots import data_size_curve, inline_svg
from cirray.evaluation.tables import percent, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEVELS = {"confirmed": "good", "refuted": "bad", "not settled": "fair", "no difference": "fair", "one seed": "fair"}
_SAME = 5e-4
_TEXT_HEAD = ("generated texts", "exact, % (forward / reverse)", "triplets")


@dataclass(frozen=True)
class StudyRow:
    """One method: every figure (a fraction) as one value per seed."""

    name: str
    metrics: Mapping[str, tuple[float, ...]]
    labels: int = 0
    """Labelled triplets used anywhere on the way."""
    seconds: tuple[float, ...] = ()
    """Wall time of all stages it needs beyond the features, per seed."""
    texts: tuple[float, ...] = ()
    """Share of exact texts among the generated ones it was trained on, per seed; empty where there are none."""
    source: str = ""
    """Paper or idea."""


@dataclass(frozen=True)
class Verdict:
    """An expectation and what was measured; `differences` are fractions, one per seed, `over` the row compared with."""

    text: str
    row: str
    over: str
    metric: str
    differences: tuple[float, ...]
    wanted: tuple[float, ...]

    @property
    def word(self) -> str:
        """confirmed: every seed is above the wanted value. refuted: none is. One seed settles nothing."""
        if len(self.differences) < 2:
            return "one seed"
        if max(abs(found) for found in self.differences) < _SAME:
            return "no difference"
        above = [found > least for found, least in zip(self.differences, self.wanted, strict=True)]
        return "confirmed" if all(above) else "refuted" if not any(above) else "not settled"

    @property
    def measured(self) -> str:
        """The differences in points, as text."""
        return _points(spread(self.differences))

    def line(self) -> str:
        """One line for people."""
        wanted = f" (wanted: more than {100 * spread(self.wanted).mean:+.1f})" if any(self.wanted) else ""
        return f"{self.word.upper():<14} {self.text}: {self.measured} {self.metric} over {self.over!r}{wanted}"


@dataclass(frozen=True)
class Texts:
    """Accuracy of generated texts: shares of exact ones by seed, of each direction (forward, reverse) or of all."""

    name: str
    shares: tuple[tuple[float, ...], ...]
    triplets: tuple[int, ...] = ()
    """How many texts there are, by seed; zero or empty: they were written to be judged alone."""

    def cells(self) -> list[str]:
        """Name, shares in percent, number of triplets."""
        count = f"{spread(self.triplets).mean:,.0f}" if any(self.triplets) else ""
        return [self.name, " / ".join(percent(spread(values)) for values in self.shares), count]


@dataclass(frozen=True)
class Curve:
    """Methods over the values of one variable."""

    title: str
    x_label: str
    metric: str
    points: Mapping[str, tuple[tuple[float, tuple[float, ...]], ...]]
    """Method -> (value of the variable, one fraction per seed) in the order of the values."""
    scale: str = "log"

    def rows(self, name: str) -> list[StudyRow]:
        """A method's points as rows of a table, one for each value."""
        return [StudyRow(f"{name}, {self.x_label} {at:g}", {self.metric: seeds}) for at, seeds in self.points[name]]

    def figure(self) -> "Figure":
        """Means with sample deviations."""
        found = {name: [(at, spread(seeds)) for at, seeds in points] for name, points in self.points.items()}
        series = {name: [(at, item.mean, item.deviation) for at, item in points] for name, points in found.items()}
        return data_size_curve(series, self.x_label, f"{self.metric} in %", self.scale)

    def text(self) -> str:
        """One line per method, one column per value."""
        values = [at for at, _ in next(iter(self.points.values()))]
        lines = [[self.x_label, *(f"{value:,g}" for value in values)]]
        lines += [[name, *(percent(spread(seeds)) for _, seeds in points)] for name, points in self.points.items()]
        return text_table(lines, self.title)


@dataclass(frozen=True)
class StudyContent:
    """Content of a study's report."""

    title: str
    rows: tuple[StudyRow, ...]
    protocol: str
    seeds: tuple[int, ...]
    verdicts: tuple[Verdict, ...] = ()
    figures: Mapping[str, "Figure"] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    """Words -> page beside this one (the seeds' own reports, with pictures)."""
    curves: tuple[Curve, ...] = ()
    """In the text and the figures' file; their pictures are among `figures`."""
    texts: tuple[Texts, ...] = ()
    tables: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Further tables: title -> lines of cells, the header first."""


def judge_claim(
    text: str, row: StudyRow, others: Sequence[StudyRow], metric: str, points: float = 0.0, relative: float = 0.0,
    share: float = 0.0, upper: StudyRow | None = None,
) -> Verdict:  # fmt: skip
    """Compare a row, seed by seed, with the best (by mean) of others.

    Args:
        text: the claim.
        row: what should be better.
        others: at least one row.
        metric: a figure of both.
        points: wanted advantage in points of a percentage; below 0: by how much it may be worse.
        relative: wanted advantage as a share of the other's figure.
        share: wanted advantage as a share of the upper bound's.
        upper: the upper bound.
    """
    best = max(others, key=lambda item: spread(item.metrics[metric]).mean)
    bases, tops = best.metrics[metric], (upper or best).metrics[metric]
    wanted = []
    for base, top in zip(bases, tops, strict=True):
        more = ([relative * base] if relative else []) + ([share * (top - base)] if share else [])
        wanted.append(max([points / 100, *more]))
    differences = tuple(own - base for own, base in zip(row.metrics[metric], bases, strict=True))
    return Verdict(text, row.name, best.name, metric, differences, tuple(wanted))


def study_dict(content: StudyContent) -> dict[str, Any]:
    """JSON-ready: every row with its values and means, every verdict."""
    return {
        "title": content.title,
        "protocol": content.protocol,
        "seeds": list(content.seeds),
        "rows": [{**asdict(row), "mean": {k: spread(v).mean for k, v in row.metrics.items()}} for row in content.rows],
        "claims": [{**asdict(item), "verdict": item.word} for item in content.verdicts],
        "curves": [asdict(item) for item in content.curves],
        "texts": [asdict(item) for item in content.texts],
        "tables": {title: [list(line) for line in lines] for title, lines in content.tables.items()},
        "facts": dict(content.facts),
    }


def render_study(content: StudyContent, metrics: Sequence[str] = ("R@1", "R@5", "R@10")) -> str:
    """The table (percent, mean ± sample deviation over seeds), its protocol and the verdicts as text."""
    lines = [["", *metrics, "labels", "texts exact", "seconds"]]
    for row in content.rows:
        cells = [percent(spread(row.metrics[name])) for name in metrics]
        lines.append([row.name, *cells, f"{row.labels:,}", _share(row.texts), _seconds(row.seconds)])
    seeds = ", ".join(str(seed) for seed in content.seeds)
    parts = [text_table(lines, f"{content.title} (seeds {seeds})"), f"Protocol: {content.protocol}."]
    if content.texts:
        parts += ["", text_table([_TEXT_HEAD, *(item.cells() for item in content.texts)])]
    if content.verdicts:
        parts += ["", *(item.line() for item in content.verdicts)]
    for title, told in content.tables.items():
        parts += ["", text_table(told, title)]
    for curve in content.curves:
        parts += ["", curve.text()]
    return "\n".join(parts)


def study_page(content: StudyContent, metrics: Sequence[str] = ("R@1", "R@5", "R@10")) -> str:
    """The study as one HTML page without script or outside resource."""
    rows = [
        (row, [spread(row.metrics[name]) for name in metrics],
         (f"{row.labels:,}", _share(row.texts), _seconds(row.seconds)))
        for row in content.rows
    ]  # fmt: skip
    return render(
        "study.html", title=content.title, content=content, metrics=list(metrics), rows=rows,
        best=max(content.rows, key=lambda row: spread(row.metrics[metrics[0]]).mean), levels=_LEVELS,
        text_head=_TEXT_HEAD, drawings={name: inline_svg(figure, name) for name, figure in content.figures.items()},
    )  # fmt: skip


def _points(value: Spread) -> str:
    deviation = "" if value.deviation is None else f" ± {100 * value.deviation:.1f}"
    return f"{100 * value.mean:+.1f}{deviation} points of"


def _share(values: Sequence[float]) -> str:
    return percent(spread(values)) if values else ""


def _seconds(values: Sequence[float]) -> str:
    return f"{spread(values).mean:,.0f}" if values else ""
