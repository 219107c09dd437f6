"""Round-trip check of generated triplets: does a base retriever find the target by the generated text?

An incomplete or wrong text leads a retriever that was not trained on it to other images. `rank`: the target's rank
among all images of the triplets, own reference removed; `outrank`: whether the target beats the own reference;
`direction`: whether the text leads rather from reference to target than back.
"""

from collections.abc import Sequence

import numpy as np
import torch

from cirray.evaluation.chunked import Question, Settings, Shard, merge, merge_probes, probe_scores, scan
from cirray.evaluation.evaluate import ComposedEncoder, patches_of
from cirray.features.store import FeatureLookup


def round_trip_ranks(
    query_BD: np.ndarray, names: Sequence[str], targets: np.ndarray, references: np.ndarray, gallery: Sequence[Shard],
    device: str = "cpu",
) -> np.ndarray:  # fmt: skip
    """Rank of every query's target, its reference removed: int64 `[B]`, from 0, ties against the query.

    Args:
        query_BD: vectors of references and texts.
        names: the queries' names, for errors.
        targets: rows of the targets in the gallery.
        references: rows of the references.
        gallery: the images' vectors, as the model scores them; in any number of files.
        device: where they are compared.
    """
    question = Question(query_BD, tuple(names), np.arange(len(query_BD)), targets, references, top_k=1)
    settings = Settings(device, normalize=False)
    scores_B = merge_probes(question, [probe_scores(question, shard, settings) for shard in gallery])
    return merge([scan(question, shard, scores_B, settings) for shard in gallery]).above


def pair_margins(
    encoder: ComposedEncoder, features: FeatureLookup, references: Sequence[str], targets: Sequence[str],
    texts: Sequence[str], batch: int = 128,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """How far a target is ahead, each `[n]`: of its reference for the query (reference, text), and, with that query's
    score, of the reference for the query (target, text), which is high if the text tells the opposite change.
    """
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(texts), batch):
            rows = slice(begin, begin + batch)
            parts.append(_margins(encoder, features, references[rows], targets[rows], texts[rows]))
    outrank, direction = (np.concatenate(column) for column in zip(*parts, strict=True))
    return outrank, direction


def _margins(
    encoder: ComposedEncoder, features: FeatureLookup, references: Sequence[str], targets: Sequence[str],
    texts: Sequence[str],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    patches, text = [patches_of(encoder, features, ids) for ids in (references, targets)], encoder.tokenize([*texts])
    there, back = (encoder.compose(encoder.encode_reference(item), text) for item in patches)
    reference, target = (encoder.encode_gallery(item) for item in patches)
    pairs = ((there, target), (there, reference), (back, reference))
    ahead, own, opposite = (encoder.score(*pair).diagonal().float().cpu().numpy() for pair in pairs)
    return ahead - own, ahead - opposite


def twins(references: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Row of every triplet's reverse twin (its images swapped), or its own row if it has none: int64 `[n]`.

    Images are numbers, one a triplet. Of several twins the last counts.
    """
    size, own = np.int64(max(references.max(initial=0), targets.max(initial=0)) + 1), np.arange(len(references))
    there, back = references * size + targets, targets * size + references
    order = np.argsort(there, kind="stable")
    place = np.searchsorted(there, back, side="right", sorter=order) - 1
    found = order[np.maximum(place, 0)]
    return np.where((place >= 0) & (there[found] == back), found, own)
