"""`cirray index --target-recall`: measure kinds of index on the vectors that were made; take the quickest that fits."""

from typing import Any

from cirray.core.arrays import read_array
from cirray.core.artifacts import Stage
from cirray.core.log import get_logger
from cirray.evaluation.plots import frontier_plot, save_figure
from cirray.index.choice import Measured, chosen, frontier, measured
from cirray.index.config import IndexBackend
from cirray.index.faiss_index import limit_faiss_threads
from cirray.index.store import TOKENS

_LOGGER = get_logger("pipelines.index")
FIGURE = "choice.svg"
"""Recall and speed of what was measured, in the index's folder."""


def choose_index(stage: Stage, target: float) -> tuple[IndexBackend, list[dict[str, Any]]]:
    """The backend that a target recall asks for, the share of the true best answers that are to be found, and what was
    measured, for the manifest.

    Tells a table and writes a figure of it.
    """
    limit_faiss_threads(1)  # as a replica of the service has
    found = measured(read_array(stage.local / TOKENS), target)
    best = chosen(found, target)
    _LOGGER.info("kinds of index, one thread, batches of 32, recall of the best 10:\n%s", table(found, best))
    points = {one.name: (one.recall, one.per_second) for one in found}
    save_figure(frontier_plot(points, [one.name for one in frontier(found)], best.name, target), stage.local / FIGURE)
    rows = [
        {
            "index": one.name, "recall": round(one.recall, 4), "queries_per_second": round(one.per_second, 1),
            "bytes": one.size, "build_s": round(one.build_s, 2), "chosen": one is best,
        }
        for one in found
    ]  # fmt: skip
    return IndexBackend(kind="faiss", settings=best.settings), rows


def table(found: list[Measured], best: Measured) -> str:
    """What was measured, a line each: `*` is on the frontier, the choice is named below."""
    wide = max(len(one.name) for one in found)
    edge = frontier(found)
    lines = [f"  {'index':<{wide}}  recall  queries/s        MB  build s"]
    for one in found:
        mark = "*" if one in edge else " "
        lines.append(
            f"{mark} {one.name:<{wide}}  {one.recall:6.4f}  {one.per_second:9,.0f}  {one.size / 1e6:8.2f}"
            f"  {one.build_s:7.2f}"
        )
    return "\n".join([*lines, f"* no other is better in all three; built: {best.name}"])
