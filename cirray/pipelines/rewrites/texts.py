"""A data set with rewritten query texts, for `evaluate texts=` and `submit texts=`."""

import dataclasses
from typing import Any

from cirray.core.artifacts import localize, read_manifest
from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.triplets.rewrites import KIND, named, rejected_rewrites, rewrite_table
from cirray.types import Query


def own_texts(query: Query) -> tuple[str, ...]:
    """The texts of a query's vector: its variants, or its modification."""
    return query.variants or (query.modification,)


def with_texts(dataset: CirDataset, uri: str) -> tuple[CirDataset, dict[str, Any]]:
    """The data set with rewritten queries, and the digests of the rewrites.

    Rejected texts stay as in the data set; such queries are counted (`kept`) in the protocol.

    Raises ArtifactError when there is no rewrites artifact, and DataError when a query is not in it, or has another
    reference there.
    """
    manifest, folder = read_manifest(uri, KIND), str(localize(uri, KIND))
    rows, refused = rewrite_table(folder), rejected_rewrites(folder)
    texts = dict(zip(named(rows), rows.column("text").to_pylist(), strict=True))
    texts |= {pair: pair[1] for pair in named(refused)}
    references = {row["query_id"]: row["reference_id"] for table in (rows, refused) for row in table.to_pylist()}
    queries = tuple(_rewritten(query, texts, references, uri) for query in dataset.queries)
    pins = {name: manifest.extra[name] for name in ("rewriter", "by", "prompt_version")}
    failed = {query for query, _ in named(refused)}
    kept = sum(query.query_id in failed for query in dataset.queries)
    rule = f"{dataset.protocol.caption_rule}; rewritten by {pins['prompt_version'] or pins['rewriter']}"
    rule += f" but {kept} of {len(queries)}" if kept else ""
    protocol = dataclasses.replace(dataset.protocol, caption_rule=rule)
    record = {"digest": manifest.digest, "kept": kept, **pins, "inputs": manifest.inputs}
    return dataclasses.replace(dataset, queries=queries, protocol=protocol), record


def _rewritten(query: Query, texts: dict[tuple[str, ...], str], references: dict[str, str], uri: str) -> Query:
    found = [texts.get((query.query_id, text), "") for text in own_texts(query)]
    if not all(found) or references[query.query_id] != query.reference_id:
        raise DataError(
            f"Query {query.query_id!r} ({own_texts(query)[0]!r} of {query.reference_id!r}) is not in the rewrites "
            f"{uri!r}; they were made for other queries or another caption rule. Run cirray rewrite on this data."
        )
    return dataclasses.replace(
        query, modification=" / ".join(dict.fromkeys(found)), variants=tuple(found) if query.variants else ()
    )
