"""The files of a report: figures, table, rankings, curves, and one HTML page.

The page has its pictures embedded, no script, no outside resource, and every name escaped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cirray.core.seeding import numpy_generator
from cirray.evaluation.metrics import NEVER, Spread
from cirray.evaluation.pages import render
from cirray.evaluation.pictures import Thumbnails
from cirray.evaluation.plots import inline_svg, recall_curves, training_curves
from cirray.evaluation.report import (
    ReportContent,
    ReportRow,
    check_rows,
    file_name,
    metrics_dict,
    per_edit_spread,
    render_table,
    write_rankings,
)
from cirray.evaluation.result import EvaluationResult
from cirray.evaluation.tables import percent

_STRIP = 8


def render_page(content: ReportContent) -> str:
    """The whole page.

    Returns: HTML text that needs no other file.
    """
    row = content.rows[-1]
    depths = recall_curves({item.name: [run.ranks for run in item.results] for item in content.rows})
    metric, edits = _edits(content.rows)
    return render(
        "report.html", title=content.title, dataset=content.dataset, rows=content.rows, row=row, result=row.results[0],
        tiles=_tiles(row), metric=metric, edits=edits, depths=inline_svg(depths, "Recall at k"),
        groups=choose_queries(row.results[0], content.shown, content.seed), samples=content.samples,
        curves=[
            inline_svg(training_curves(name, history), f"Training curve of {name}")
            for name, history in content.histories.items() if history
        ],
        content_facts=content.facts, pictures=Thumbnails(content.dataset.images), strip=_STRIP, never=NEVER,
    )  # fmt: skip


def choose_queries(result: EvaluationResult, count: int, seed: int) -> dict[str, list[int]]:
    """Positions of the queries to show, by heading: random, found most clearly, ranked worst.

    The clear ones are hits at rank 1 with the largest score margin, alternating over edit types; queries that cannot be
    hit are only in the random group.
    """
    total = result.query_count
    drawn = numpy_generator(seed, "report queries").permutation(total)[:count]
    order = np.argsort(-np.where(result.ranks == NEVER, -1, result.ranks), kind="stable")
    worst = [int(at) for at in order if 0 < result.ranks[at] < NEVER][:count]
    return {
        "Drawn at random": [int(at) for at in drawn],
        "Found most clearly": _clearest(result, count),
        "Ranked worst": worst,
    }


def _clearest(result: EvaluationResult, count: int) -> list[int]:
    found = [at for at in range(result.query_count) if result.ranks[at] == 0]
    found.sort(key=lambda at: -_margin(result.rankings[at].scores))
    turns: dict[str, int] = {}
    keyed = []
    for at in found:
        edit = result.queries[at].edit
        turns[edit] = turns.get(edit, 0) + 1
        keyed.append((turns[edit], at))
    keyed.sort(key=lambda item: item[0])
    return [at for _, at in keyed[:count]]


def _margin(scores: Sequence[float]) -> float:
    return scores[0] - scores[1] if len(scores) > 1 else 0.0


def _tiles(row: ReportRow) -> list[tuple[str, str, str]]:
    """Value, name and uncertainty of the figures on top."""
    first = row.results[0]
    tiles = [
        (f"{percent(value.mean)} %", name, _uncertainty(value, first, name)) for name, value in row.metrics.items()
    ]
    ranks = first.ranks[first.ranks != NEVER]
    if len(ranks):
        tiles.append((f"{np.median(ranks) + 1:g}", "median rank", f"of {first.gallery_size:,} images"))
    return tiles


def _uncertainty(value: Spread, result: EvaluationResult, name: str) -> str:
    if value.deviation is not None:
        return f"± {100 * value.deviation:.1f} over {value.count} seeds"
    low, high = result.intervals.get(name, (value.mean, value.mean))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _edits(rows: Sequence[ReportRow]) -> tuple[str, list[tuple[str, int, list[Spread]]]]:
    """A metric, and of every type of edit its name, number of queries and figure in each row; best ones first."""
    edits = rows[-1].results[0].per_edit
    if not edits:
        return "", []
    recalls = next(iter(edits.values())).recalls
    metric = next((name for name in rows[-1].metrics if name in recalls), next(iter(recalls)))
    spreads = [per_edit_spread(row, metric) for row in rows]
    ordered = sorted(edits.items(), key=lambda item: -item[1].recalls[metric])
    return metric, [(name, group.queries, [values[name] for values in spreads]) for name, group in ordered]


def write_report(out_dir: Path, content: ReportContent, html: bool = True) -> dict[str, Any]:
    """Write every file of a report into an existing or new folder; `html` needs the images of the data set.

    Returns: The content of metrics.json.

    Raises:
        DataError: without rows, or when rows differ in protocol, gallery or queries (their figures would not compare).
    """
    check_rows(content.rows)
    out_dir.mkdir(parents=True, exist_ok=True)
    metrics = metrics_dict(content)
    (out_dir / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (out_dir / "table.txt").write_text(render_table(content.rows) + "\n", encoding="utf-8")
    write_rankings(out_dir / "rankings.parquet", content.rows)
    _write_curves(out_dir / "curves", content)
    if html:
        (out_dir / "report.html").write_text(render_page(content), encoding="utf-8")
    return metrics


def _write_curves(folder: Path, content: ReportContent) -> None:
    from cirray.evaluation.plots import save_figure, training_curves

    for name, history in content.histories.items():
        if history:
            save_figure(training_curves(name, history), folder / f"{file_name(name)}.png")
