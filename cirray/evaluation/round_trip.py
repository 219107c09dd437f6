"""Round-trip check of generated triplets: does a base retriever find the target by the generated text?

A text that tells only part of the change, or a change that never was, leads a retriever that never saw it to other
images. The check asks for the target's rank among all images of the triplets, own reference removed.
"""

from collections.abc import Sequence

import numpy as np

from cirray.core.progress import Advance, silent
from cirray.data.benchmark import Protocol
from cirray.evaluation.evaluate import ComposedEncoder, FeatureLookup, evaluate_retriever
from cirray.types import Query, Triplet


def round_trip_ranks(
    encoder: ComposedEncoder,
    features: FeatureLookup,
    triplets: Sequence[Triplet],
    *,
    batch: int = 128,
    advance: Advance = silent,
) -> np.ndarray:
    """Rank of every triplet's target for its own reference and text.

    Args:
        encoder: the base retriever; not one that was trained on these triplets.
        features: patch tokens of every image.
        triplets: at least one.
        batch: images and queries per forward pass.
        advance: progress, one unit per image and per triplet.

    Returns:
        int64 `[len(triplets)]`, from 0, ties against the triplet.
    """
    queries = [Query(row.triplet_id, row.reference_id, row.modification, (row.target_id,)) for row in triplets]
    gallery = sorted({image for row in triplets for image in (row.reference_id, row.target_id)})
    protocol = Protocol("round trip", split="train", gallery_rule="all images of the triplets", ks=(1,))
    result = evaluate_retriever(
        encoder, features, queries, gallery, protocol, batch=batch, top_k=1, advance=advance
    )  # fmt: skip
    return result.ranks


def worse_of_both(triplets: Sequence[Triplet], ranks: np.ndarray) -> np.ndarray:
    """The larger rank of a triplet and its reverse twin (target and reference swapped); its own without a twin."""
    places = {(row.reference_id, row.target_id): at for at, row in enumerate(triplets)}
    twins = [places.get((row.target_id, row.reference_id), at) for at, row in enumerate(triplets)]
    return np.maximum(ranks, ranks[np.asarray(twins, dtype=np.int64)])
