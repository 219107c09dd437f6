"""Round-trip check of generated triplets: does a base retriever find the target by the generated text?

An incomplete or wrong text leads a retriever that was not trained on it to other images. `rank`: the target's rank
among all images of the triplets, own reference removed; `outrank`: whether the target beats the own reference;
`direction`: whether the text leads rather from reference to target than back.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cirray.core.progress import Advance, silent
from cirray.data.benchmark import Protocol
from cirray.evaluation.evaluate import ComposedEncoder, evaluate_retriever
from cirray.features.store import FeatureLookup
from cirray.types import Query, Triplet


def round_trip_ranks(
    encoder: ComposedEncoder,
    features: FeatureLookup,
    triplets: Sequence[Triplet],
    *,
    batch: int = 128,
    advance: Advance = silent,
) -> np.ndarray:
    """Rank of every triplet's target for its own reference and text, by a base retriever that was not trained on them.

    Returns: int64 `[len(triplets)]`, from 0, ties against the triplet.
    """
    queries = [Query(row.triplet_id, row.reference_id, row.modification, (row.target_id,)) for row in triplets]
    gallery = sorted({image for row in triplets for image in (row.reference_id, row.target_id)})
    protocol = Protocol("round trip", split="train", gallery_rule="all images of the triplets", ks=(1,))
    result = evaluate_retriever(
        encoder, features, queries, gallery, protocol, batch=batch, top_k=1, advance=advance
    )  # fmt: skip
    return result.ranks


@dataclass(frozen=True)
class PairScores:
    """Similarities of every triplet `[n]`: of (reference, text) to target and to the reference itself, and back."""

    target: np.ndarray
    reference: np.ndarray
    back: np.ndarray
    """Of (target, text) to the reference; high if the text describes the opposite change."""


def pair_scores(
    encoder: ComposedEncoder,
    features: FeatureLookup,
    triplets: Sequence[Triplet],
    *,
    batch: int = 128,
    advance: Advance = silent,
) -> PairScores:
    """Similarity of a base retriever's queries to both images of their pair; it was not trained on them."""
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(triplets), batch):
            rows = triplets[begin : begin + batch]
            parts.append(_scores(encoder, features, rows))
            advance(len(rows))
    return PairScores(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _scores(encoder: ComposedEncoder, features: FeatureLookup, rows: Sequence[Triplet]) -> tuple[np.ndarray, ...]:
    ends = [[row.reference_id for row in rows], [row.target_id for row in rows]]
    patches = [torch.from_numpy(np.asarray(features.get(ids), dtype=np.float32)) for ids in ends]
    text = encoder.tokenize([row.modification for row in rows])
    there, back = (encoder.compose(encoder.encode_reference(item), text) for item in patches)
    reference, target = (encoder.encode_gallery(item) for item in patches)
    pairs = ((there, target), (there, reference), (back, reference))
    return tuple(encoder.score(query, gallery).diagonal().float().cpu().numpy() for query, gallery in pairs)


def worse_of_both(triplets: Sequence[Triplet], ranks: np.ndarray) -> np.ndarray:
    """The larger rank of a triplet and its reverse twin (target and reference swapped); its own without a twin."""
    return np.maximum(ranks, ranks[twins(triplets)])


def twins(triplets: Sequence[Triplet]) -> np.ndarray:
    """Row of every triplet's reverse twin, or its own row if it has none: int64 `[n]`."""
    places = {(row.reference_id, row.target_id): at for at, row in enumerate(triplets)}
    found = [places.get((row.target_id, row.reference_id), at) for at, row in enumerate(triplets)]
    return np.asarray(found, dtype=np.int64)
