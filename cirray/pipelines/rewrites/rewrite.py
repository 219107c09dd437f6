"""The rewrite stage: captions of references + modifications -> captions of targets, cached, resumable by part.

CIReVL (training-free; docs/PAPERS.md#cirevl) is four configs: `cirray caption parts=[references]`, this stage, a
checkpoint of `cirray map training.objective=untrained model.query=text`, and `cirray evaluate texts=REWRITES`.
"""

from collections import Counter
from typing import Any

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, directory_digest, localize, open_stage, read_manifest
from cirray.core.errors import DataError, GenerationError
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.generators.rewriters.base import REWRITERS, rewrite_prompt
from cirray.pipelines.cluster.streaming import Step, stream
from cirray.pipelines.data.datasets import open_dataset
from cirray.pipelines.rewrites.actors import COLUMNS, RewriteTexts
from cirray.pipelines.rewrites.config import RewriteRun
from cirray.pipelines.rewrites.texts import own_texts
from cirray.triplets import captions
from cirray.triplets.rewrites import KEY, KIND, named, rejected_rewrites, rewrite_table
from cirray.triplets.store import PARTS, finished_keys
from cirray.types import stable_id

_ROW_BYTES = 2048
_REASONS_SHOWN = 20


@stage_function
def run_rewrite(run: RewriteRun) -> Manifest:
    """Rewrite every text of every query; a killed run goes on after its last finished part.

    Returns:
        Manifest of kind "rewrites"; counts `queries`, `texts`, `rejected`; `extra` pins rewriter, model and
        instruction.

    Raises:
        ArtifactError: an input is missing, or another run's output stands at `out`.
        ConfigError: for an unknown rewriter or prompt.
        DataError: no query, or none whose reference has a caption.
        GenerationError: when texts are lost.
    """
    REWRITERS.get(run.rewriter)
    template, version = rewrite_prompt(run.prompt)
    dataset = open_dataset(run.data)
    table = _items(run, dataset)
    stage = open_stage(run.out, KIND, _result_config(run), _inputs(run, table, version), PARTS)
    if stage.finished:
        return stage.finished
    parts = [_part(run, table, start) for start in range(0, len(table), run.part_rows)]
    finished = finished_keys(stage.work_uri, KEY)
    todo = [part for at, part in enumerate(parts) if set(finished.get(f"part-{at:05d}", ())) != set(named(part))]
    asked = 0
    with progress("rewrite texts", len(table), "texts") as advance:
        advance(len(table) - sum(map(len, todo)), "finished before" if len(todo) < len(parts) else "", earlier=True)
        for summary in stream(todo, [_step(run, stage, template, version)], run.ray, run.part_rows * _ROW_BYTES):
            advance(int(summary["rows"][0]))
            asked += int(summary["asked"][0])
    return _publish(run, stage, table, {"prompt_version": version, "asked": asked})


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


def _part(run: RewriteRun, table: pa.Table, start: int) -> pa.Table:
    rows = table.slice(start, run.part_rows).combine_chunks()
    for name, value in (("part_rows", len(rows)), ("part", start // run.part_rows)):
        rows = rows.add_column(0, name, pa.array([value] * len(rows)))
    return rows


def _step(run: RewriteRun, stage: Stage, template: str, version: str) -> Step:
    settings = {
        "source": run.source, "template": template, "new_tokens": run.new_tokens, "batch": run.batch,
        "device": "cuda" if run.pool.gpus else "cpu", "dtype": run.language_dtype,
        "quantization": run.language_quantization,
    }  # fmt: skip
    actor = {
        "rewriter": run.rewriter, "settings": settings, "prompt_version": version, "work_uri": stage.work_uri,
        "reuse": [str(localize(uri, KIND)) for uri in run.reuse], "threads": run.pool.threads,
    }  # fmt: skip
    return Step(RewriteTexts, actor, run.pool)


def _publish(run: RewriteRun, stage: Stage, items: pa.Table, extra: dict[str, Any]) -> Manifest:
    table, rejected = rewrite_table(stage.work_uri), rejected_rewrites(stage.work_uri)
    if sorted([*named(table), *named(rejected)]) != sorted(named(items)):
        odd = {*named(table), *named(rejected)} ^ set(named(items))
        raise GenerationError(
            f"{len(odd)} texts are lost, doubled or unknown in {stage.work_uri!r}, e.g. of query "
            f"{min(odd, default=('?',))[0]!r}; run again."
        )
    if not len(table):
        reason = Counter(rejected.column("reason").to_pylist()).most_common(1)[0][0]
        stage.discard()
        raise DataError(f"None of {len(items)} texts was rewritten, most often: {reason}.")
    counts = {
        "queries": len(set(items.column("query_id").to_pylist())), "texts": len(table), "rejected": len(rejected),
    }  # fmt: skip
    shown = [[row["query_id"], row["reason"]] for row in rejected.slice(0, _REASONS_SHOWN).to_pylist()]
    pins = {"rewriter": table.column("rewriter")[0].as_py(), "source": run.source, "rejected": shown}
    return stage.publish(counts, {}, {**pins, **extra})


def _result_config(run: RewriteRun) -> dict[str, Any]:
    """What decides the content: everything but places, devices, workers and what is only saved work."""
    config = run.to_dict()
    names = ("rewriter", "prompt", "new_tokens", "part_rows", "language_dtype", "language_quantization")
    return {name: config[name] for name in names}


def _inputs(run: RewriteRun, table: pa.Table, version: str) -> dict[str, str]:
    is_folder = bool(run.source) and storage.is_local(run.source) and storage.local_path(run.source).is_dir()
    inputs = {"source": directory_digest(run.source) if is_folder else run.source, "prompt": version}
    inputs |= {f"captions {at}": read_manifest(uri, captions.KIND).digest for at, uri in enumerate(run.captions)}
    texts = (part for name in COLUMNS for part in (name, *table.column(name).to_pylist()))
    return {**inputs, "texts": stable_id("rewrites", *texts)}
