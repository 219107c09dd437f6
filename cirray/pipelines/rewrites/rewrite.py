"""The rewrite stage: captions of references + modifications -> captions of targets, cached, resumable by part.

CIReVL (training-free; docs/PAPERS.md#cirevl) is four configs: `cirray caption parts=[references]`, this stage, a
checkpoint of `cirray map training.objective=untrained model.query=text`, and `cirray evaluate texts=REWRITES`.
"""

from functools import partial

import pyarrow as pa

from cirray.core.artifacts import Manifest, Stage, localize, open_stage
from cirray.core.errors import DataError
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.generators.rewriters.base import RewriterSetup
from cirray.pipelines.cluster.parts import Cut, Parts, Rejected, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.data.datasets import open_dataset
from cirray.pipelines.rewrites.actors import COLUMNS, RewriteTexts
from cirray.pipelines.rewrites.config import RewriteRun
from cirray.pipelines.rewrites.texts import own_texts
from cirray.triplets import captions
from cirray.triplets.rewrites import KEY, KIND, rejected_rewrites, rewrite_table
from cirray.triplets.store import PARTS, finished_keys, row_keys
from cirray.types import stable_id


@stage_function
def run_rewrite(run: RewriteRun) -> Manifest:
    """Rewrite every text of every query; a killed run goes on after its last finished part.

    Returns: Manifest of kind "rewrites"; counts `queries`, `texts`, `rejected`; `extra` pins rewriter, model and
    instruction.

    Raises ArtifactError: an input is missing, or another run's output is at `out`; DataError: no query, or none whose
    reference has a caption; GenerationError when texts are lost.
    """
    table = _items(run, open_dataset(run.data))
    stage = open_stage(run, KIND, _inputs(run, table), PARTS)
    if stage.finished:
        return stage.finished
    sums = run_parts(stage, _parts(run, stage, table), run.ray)
    return _publish(run, stage, table, sums["asked"])


def _items(run: RewriteRun, dataset: CirDataset) -> pa.Table:
    """Every text of every query once, with its reference's caption (empty where there is none)."""
    if not dataset.queries:
        raise DataError(f"Data set {dataset.name!r} has no queries, so there is no text to rewrite. Name a split.")
    known = captions.read_captions(run.captions)
    rows = [
        (query.query_id, query.reference_id, text, known.get(query.reference_id, {}).get("caption", ""))
        for query in dataset.queries
        for text in dict.fromkeys(own_texts(query))
    ]
    if not any(row[-1] for row in rows):
        raise DataError(
            f"No reference of the {len(dataset.queries):,} queries, e.g. {dataset.queries[0].reference_id!r}, has a "
            "caption. Write them first: cirray caption parts=[references]."
        )
    return pa.table(dict(zip(COLUMNS, map(list, zip(*rows, strict=True)), strict=True)))


def _parts(run: RewriteRun, stage: Stage, table: pa.Table) -> Parts:
    return Parts(
        "rewrite texts", "texts", Cut(table, run.part_rows), [_step(run, stage)], partial(row_keys, columns=KEY),
        lambda: finished_keys(stage.work_uri, KEY), row_bytes=2048,
    )  # fmt: skip


def _step(run: RewriteRun, stage: Stage) -> Step:
    setup, reuse = RewriterSetup(run.pool.device, run.batch), [str(localize(uri, KIND)) for uri in run.reuse]
    actor = {"rewriter": run.rewriter, "setup": setup, "work_uri": stage.work_uri, "reuse": reuse}
    return Step(RewriteTexts, actor, run.pool)


def _publish(run: RewriteRun, stage: Stage, items: pa.Table, asked: int) -> Manifest:
    table, rejected = rewrite_table(stage.work_uri), Rejected.of([rejected_rewrites(stage.work_uri)], "query_id")
    rejected.refuse_all(stage, len(table), "None of {count} texts was rewritten, most often: {reason}.")
    queries = len(items.column("query_id").unique())
    pins = {
        "rewriter": table.column("rewriter")[0].as_py(), "by": run.rewriter.to_dict(),
        "prompt_version": run.rewriter.prompt_version, "rejected": rejected.first(), "asked": asked,
    }  # fmt: skip
    counts = {"queries": queries, "texts": len(table), "rejected": len(rejected)}
    return stage.publish(counts, extra=pins)


def _inputs(run: RewriteRun, table: pa.Table) -> dict[str, str]:
    inputs = {"prompt": run.rewriter.prompt_version}
    texts = (part for name in COLUMNS for part in (name, *table.column(name).to_pylist()))
    return {**inputs, "data": stable_id("rewrites", *texts)}
