"""Result tables as plain text: the report's rows, and the story's rows with its claims."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from cirray.core.errors import DataError
from cirray.evaluation.metrics import Spread, spread
from cirray.evaluation.result import EvaluationResult


@dataclass(frozen=True)
class StoryRow:
    """One line of the story's table. Recalls and text accuracy (may be empty) are fractions, one per seed."""

    name: str
    labels_used: int | None
    r1: tuple[float, ...]
    r5: tuple[float, ...]
    r10: tuple[float, ...]
    seeds: tuple[int, ...] = (0,)
    seconds: float | None = None
    """Time of this row's own stages, mean over seeds."""
    text_accuracy: tuple[float, ...] = ()
    """Share of exact generated texts among those this row was trained on."""


@dataclass(frozen=True)
class Bar:
    """A promise with its measurement; `unit` is "points" (of a percentage) or "share" (a fraction in [0, 1])."""

    promise: str
    measured: float
    wanted: float
    unit: str = "points"

    @property
    def met(self) -> bool:
        """True when the measurement reaches what is wanted."""
        return self.measured >= self.wanted

    def line(self) -> str:
        """One line for people: MET or MISSED, measured against wanted."""
        return (
            f"{'MET   ' if self.met else 'MISSED'} {self.promise}: "
            f"{amount(self.measured, self.unit)} (wanted: at least {amount(self.wanted, self.unit)})"
        )


def gain_bar(promise: str, row: StoryRow, baselines: Sequence[StoryRow], points: float) -> Bar:
    """R@1 of `row` above the best baseline's, in points of mean R@1; the text names that baseline."""
    best = _best(baselines)
    gain = 100 * (spread(row.r1).mean - spread(best.r1).mean)
    return Bar(f"{promise} (against {best.name!r})", gain, points)


def kept_gain_bar(promise: str, row: StoryRow, oracle: StoryRow, baselines: Sequence[StoryRow], share: float) -> Bar:
    """Share of the oracle row's R@1 gain over the best baseline that `row` keeps.

    If the oracle has no gain, the share is 1 when `row` is at least as good, else 0.
    """
    base, top, own = (spread(item.r1).mean for item in (_best(baselines), oracle, row))
    kept = (own - base) / (top - base) if top > base else float(own >= top)
    return Bar(promise, kept, share, "share")


def accuracy_bar(promise: str, accuracy: Sequence[float], wanted: float) -> Bar:
    """Mean accuracy over seeds, as a share."""
    return Bar(promise, spread(accuracy).mean, wanted, "share")


def render_story_table(rows: Sequence[StoryRow], bars: Sequence[Bar] = (), protocol: str = "", title: str = "") -> str:
    """The story's results: one line per row (mean ± sample deviation over seeds), the protocol, then the bars.

    Raises:
        DataError: without rows, or when a row has another number of values than of seeds.
    """
    if not rows:
        raise DataError("The story table has no rows. Give at least one.")
    for row in rows:
        lengths = {len(values) for values in (row.r1, row.r5, row.r10)}
        if lengths != {len(row.seeds)}:
            raise DataError(f"Row {row.name!r} has {len(row.seeds)} seeds but {sorted(lengths)} values per recall.")
    header = ["", "labels", "R@1", "R@5", "R@10", "texts exact", "seconds", "seeds"]
    body = [_story_cells(row) for row in rows]
    parts = [text_table(_without_empty(header, body), title)]
    parts += [f"Protocol: {protocol}."] if protocol else []
    parts += ["", *(bar.line() for bar in bars)] if bars else []
    return "\n".join(parts)


def percent(value: Spread | float) -> str:
    """A fraction as percent with one decimal; a spread as "62.9 ± 0.8"."""
    if not isinstance(value, Spread):
        return f"{100 * value:.1f}"
    return f"{100 * value.mean:.1f}" + ("" if value.deviation is None else f" ± {100 * value.deviation:.1f}")


def figures_table(result: EvaluationResult) -> str:
    """Every figure of one evaluation in percent, with its integer hits and interval, then the protocol."""
    lines = [["figure", "%", "hits", "queries", "95 %"]]
    for item in result.measures:
        low, high = result.intervals.get(item.name, (None, None))
        span = "" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"
        hits = "" if item.hits is None else f"{item.hits:,}"
        lines.append([item.name, f"{100 * item.value:.2f}", hits, f"{item.queries:,}", span])
    return f"{text_table(lines)}\n\nProtocol: {result.protocol}."


def text_table(lines: Sequence[Sequence[str]], title: str = "") -> str:
    """Aligned columns (first one to the left, others to the right) below a ruled header; `lines[0]` is the header."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for position, name in enumerate(lines[0]):
        table.add_column(Text(name), justify="left" if position == 0 else "right", no_wrap=True)
    for cells in lines[1:]:
        table.add_row(*(Text(cell) for cell in cells))
    stream = io.StringIO()
    Console(file=stream, width=400, color_system=None, legacy_windows=False).print(table)
    body = "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
    return f"{title}\n\n{body}" if title else body


def _story_cells(row: StoryRow) -> list[str]:
    return [
        row.name,
        "" if row.labels_used is None else f"{row.labels_used:,}",
        *(percent(spread(values)) for values in (row.r1, row.r5, row.r10)),
        percent(spread(row.text_accuracy)) if row.text_accuracy else "",
        "" if row.seconds is None else f"{row.seconds:,.0f}",
        str(len(row.seeds)),
    ]


def _without_empty(header: list[str], body: list[list[str]]) -> list[list[str]]:
    keep = [column for column in range(len(header)) if any(line[column] for line in body)]
    return [[line[column] for column in keep] for line in [header, *body]]


def _best(rows: Sequence[StoryRow]) -> StoryRow:
    if not rows:
        raise DataError("A gain needs at least one baseline row to be measured against.")
    return max(rows, key=lambda row: spread(row.r1).mean)


def amount(value: float, unit: str) -> str:
    """A measurement of a bar in its unit."""
    return f"{value:+.1f} points" if unit == "points" else f"{value:.2f}"
