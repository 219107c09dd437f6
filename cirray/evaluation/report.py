"""Write a report: metrics.json, rankings.parquet, table.txt, curves and one self-contained HTML page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.evaluation.metrics import Spread, spread, spread_of
from cirray.evaluation.result import EvaluationResult, ranking_rows
from cirray.evaluation.tables import percent, text_table

RANKING_SCHEMA = pa.schema(
    [
        ("row", pa.string()), ("seed", pa.int64()), ("query_id", pa.string()), ("edit", pa.string()),
        ("reference_id", pa.string()), ("modification", pa.string()), ("target_ids", pa.list_(pa.string())),
        ("rank", pa.int64()), ("ids", pa.list_(pa.string())), ("scores", pa.list_(pa.float32())),
        ("gallery", pa.string()), ("subset_ids", pa.list_(pa.string())),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class ReportRow:
    """One model in the report: a result per seed."""

    name: str
    results: tuple[EvaluationResult, ...]
    seeds: tuple[int, ...] = (0,)
    labels_used: int | None = None

    @property
    def metrics(self) -> dict[str, Spread]:
        """Mean and deviation of every recall over the seeds."""
        return spread_of([result.metrics for result in self.results])


@dataclass(frozen=True)
class TextSample:
    """A generated text with its images; `exact` is None if it cannot be judged."""

    reference_id: str
    target_id: str
    modification: str
    exact: bool | None = None
    verdict: str = ""
    """A few words beside the mark, e.g. "says the reverse"."""


@dataclass(frozen=True)
class ReportContent:
    """Content of a report. The last row's queries are shown."""

    rows: tuple[ReportRow, ...]
    dataset: CirDataset
    histories: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    samples: tuple[TextSample, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    title: str = "Evaluation"
    shown: int = 6
    """Queries per group (random, clearest, hardest)."""
    seed: int = 0
    """Seed of the random queries."""


def check_rows(rows: Sequence[ReportRow]) -> None:
    """Refuse rows that do not belong in one table.

    Raises DataError: no rows, a row without results or with another number of seeds, differing protocols or queries.
    """
    if not rows:
        raise DataError("A report needs at least one row.")
    for row in rows:
        if not row.results or len(row.results) != len(row.seeds):
            raise DataError(f"Row {row.name!r} has {len(row.results)} results for {len(row.seeds)} seeds.")
    lines = {result.protocol for row in rows for result in row.results}
    if len(lines) > 1:
        raise DataError(f"Rows of different protocols do not compare: {' | '.join(sorted(lines))}.")
    first = rows[0].results[0]
    if any(result.queries != first.queries for row in rows for result in row.results):
        raise DataError("Rows were evaluated on different queries; evaluate all of them on the same ones.")


def metrics_dict(content: ReportContent) -> dict[str, Any]:
    """JSON-ready figures of all rows: mean, deviation over seeds, and every run."""
    judged = [sample.exact for sample in content.samples if sample.exact is not None]
    return {
        "dataset": content.dataset.name,
        "protocol": content.rows[0].results[0].protocol,
        "rows": [_row_dict(row) for row in content.rows],
        "text_samples": {"shown": len(content.samples), "judged": len(judged), "exact": sum(judged)},
        "facts": dict(content.facts),
    }


def render_table(rows: Sequence[ReportRow]) -> str:
    """The rows as a text table with the protocol beneath (percent; mean ± sample deviation over seeds)."""
    names = list(rows[0].metrics)
    lines = [["", *names, "labels", "seeds"]]
    for row in rows:
        cells = [percent(row.metrics[name]) for name in names]
        labels = "" if row.labels_used is None else f"{row.labels_used:,}"
        lines.append([row.name, *cells, labels, str(len(row.seeds))])
    keep = [column for column in range(len(lines[0])) if any(line[column] for line in lines[1:])]
    table = text_table([[line[column] for column in keep] for line in lines])
    return f"{table}\n\nProtocol: {rows[0].results[0].protocol}."


def write_rankings(path: Path, rows: Sequence[ReportRow]) -> None:
    """One Parquet row per query, model and seed, with its rank and its top K."""
    runs = [(row.name, seed, result) for row in rows for seed, result in zip(row.seeds, row.results, strict=True)]
    with pq.ParquetWriter(path, RANKING_SCHEMA, compression="zstd") as writer:
        for name, seed, result in runs:
            writer.write_table(pa.Table.from_pylist(ranking_rows(name, seed, result), schema=RANKING_SCHEMA))


def per_edit_spread(row: ReportRow, metric: str = "R@1") -> dict[str, Spread]:
    """One recall of every edit type, over the seeds."""
    first = row.results[0].per_edit
    return {name: spread([run.per_edit[name].recalls[metric] for run in row.results]) for name in first}


def file_name(text: str) -> str:
    """A name that is safe as a file name on every system."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "unnamed"


def _row_dict(row: ReportRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "labels_used": row.labels_used,
        "seeds": list(row.seeds),
        "mean": {name: value.mean for name, value in row.metrics.items()},
        "deviation": {name: value.deviation for name, value in row.metrics.items()},
        "runs": [result.to_dict() for result in row.results],
    }
