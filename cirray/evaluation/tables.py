"""Result tables as plain text."""

import io
from collections.abc import Sequence

from cirray.evaluation.metrics import Spread
from cirray.evaluation.result import EvaluationResult


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
    Console(file=stream, width=400, color_system=None, legacy_windows=False, force_jupyter=False).print(table)
    body = "\n".join(line.rstrip() for line in stream.getvalue().rstrip().splitlines())
    return f"{title}\n\n{body}" if title else body
