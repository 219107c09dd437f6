"""The files of a report: figures, table, rankings, curves and the page."""

import json
from pathlib import Path
from typing import Any

from cirray.evaluation.page import render_page
from cirray.evaluation.report import ReportContent, check_rows, file_name, metrics_dict, render_table, write_rankings


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
