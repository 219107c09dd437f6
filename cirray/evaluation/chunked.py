"""Rank queries against a gallery that does not fit into memory, block by block.

Of every query only the top K, the exact scores of its probes (targets and the like) and counts of images that score at
least as high are kept; memory is bounded by `budget`. A gallery may be cut into shards: `probe_scores` and `scan` of
the shards, joined by `merge_probes` and `merge`, give the same integers as one pass.

So a score must not depend on its block: products are summed in float64 and rounded once to float32 (`sums="float64"`),
    as in the index. `sums="float32"` is faster on GPUs with slow doubles and may order near-equal images otherwise.
    Shapes: B queries, N gallery images, Q tokens, D width, P probes, K top-k.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from cirray.core.errors import ConfigError, DataError
from cirray.models.scoring import score

Sums = Literal["float64", "float32"]
_NO_KEY = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Question:
    """The question to a gallery; rows count over the whole gallery, in ascending order of image id.

    `probe_query` and `probe_row` name the P images whose exact scores are wanted, sorted by query; `removed` is the
    row that leaves each query's ranking, -1 for none.
    """

    query_BD: np.ndarray
    query_ids: tuple[str, ...]
    probe_query: np.ndarray
    probe_row: np.ndarray
    removed: np.ndarray
    top_k: int = 50
    image_ids: tuple[str, ...] = ()
    """Ids of the gallery's rows, for error sentences."""


@dataclass(frozen=True)
class Shard:
    """Part of a gallery: vectors [n, D] or [n, Q, D], any float type, usually memory-mapped, and their rows.

    `rows` are the images' rows in the whole gallery; None means `first`, `first` + 1, ... With `picked`, only these
    vectors belong to the gallery (one row each).
    """

    vectors: np.ndarray
    first: int = 0
    rows: np.ndarray | None = None
    picked: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.vectors if self.picked is None else self.picked)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of some vectors."""
        return _native(self.vectors[start:stop] if self.picked is None else self.vectors[self.picked[start:stop]])

    def keys(self, start: int, stop: int) -> np.ndarray:
        """Their rows in the whole gallery, int64."""
        if self.rows is not None:
            return self.rows[start:stop]
        return np.arange(self.first + start, self.first + min(stop, len(self)), dtype=np.int64)


@dataclass(frozen=True)
class Settings:
    """Settings of a scan. `budget`: bytes of one block of scores and vectors."""

    device: str = "cpu"
    sums: Sums = "float64"
    normalize: bool = True
    """Normalise vectors first."""
    budget: int = 256 * 2**20


@dataclass(frozen=True)
class Partial:
    """Result of a part of a gallery: the top K [B, K] by score and row, and counts [P].

    `above` counts the images that are no probe of the query and not removed, and score at least as high as the probe.
    Empty places hold the score -inf and the largest row number.
    """

    scores: np.ndarray
    rows: np.ndarray
    above: np.ndarray


def probe_scores(question: Question, shard: Shard, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores of the probes in a shard.

    Returns: Positions of these probes [p], and their scores [p] (float32).

    Raises DataError for vectors of another width, or a query that is not finite, naming it.
    """
    check_question(question, shard)
    found, values = [], []
    for start, stop in _blocks(question, shard, settings):
        keys = shard.keys(start, stop)
        hits, places = _located(question.probe_row, keys)
        if len(hits):
            found.append(hits)
            values.append(_pair_scores(question, shard, settings, hits, places + start))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    return np.concatenate(found), np.concatenate(values)


def merge_probes(question: Question, parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Scores [P] of all probes from those of the shards.

    Raises DataError when a probe is in no shard, or its vector holds NaN, naming the image.
    """
    scores, found = np.full(len(question.probe_row), np.nan, dtype=np.float32), 0
    for positions, values in parts:
        scores[positions] = values
        found += len(positions)
    if found != len(scores):
        raise DataError(f"{len(scores) - found:,} of {len(scores):,} targets lie in no shard; give all of the gallery.")
    if np.isnan(scores).any():
        raise _broken_image(question, int(question.probe_row[int(np.isnan(scores).argmax())]))
    return scores


@torch.inference_mode()
def scan(question: Question, shard: Shard, scores_P: np.ndarray, settings: Settings) -> Partial:
    """Scan a shard once. Raises DataError: for a gallery vector that is not finite, naming the image."""
    device = torch.device(settings.device)
    query_BD = _tensor(question.query_BD, device, settings)
    above = np.zeros(len(scores_P), dtype=np.int64)
    best = _nothing(len(query_BD), question.top_k)
    thresholds, slots = _threshold_table(question, scores_P, device)
    for start, stop in _blocks(question, shard, settings):
        keys = shard.keys(start, stop)
        block = shard.read(start, stop)
        _refuse_broken(block, keys, question)
        scores_BN = _block_scores(query_BD, _gallery(block, device, settings))
        if settings.sums == "float32":
            _refuse_nan(scores_BN, question.query_ids)
        _hide(scores_BN, np.arange(len(scores_BN)), question.removed, keys)
        best = _merged_top(best, _candidates(scores_BN, best[0], keys, question.top_k), question.top_k)
        _hide(scores_BN, question.probe_query, question.probe_row, keys)
        _count(scores_BN, thresholds, slots, above)
    return Partial(*best, above)


def merge(parts: Sequence[Partial]) -> Partial:
    """The joint result of several shards, in any order and grouping. Raises ConfigError: without parts."""
    if not parts:
        raise ConfigError("There are no partial results to merge; give at least one shard.")
    best = (parts[0].scores, parts[0].rows)
    for part in parts[1:]:
        best = _merged_top(best, _flat(part.scores, part.rows), best[0].shape[1])
    return Partial(*best, np.sum([part.above for part in parts], axis=0))


def split_rows(count: int, shards: int) -> list[tuple[int, int]]:
    """Row ranges of nearly equal size that cover `count` rows."""
    ends = np.linspace(0, count, shards + 1).astype(int)
    return [(int(start), int(stop)) for start, stop in zip(ends, ends[1:], strict=False) if stop > start]


def _native(vectors: np.ndarray) -> np.ndarray:
    """A copy in this machine's byte order, which torch needs."""
    return np.array(vectors, dtype=vectors.dtype.newbyteorder("="))


def _tensor(array: np.ndarray, device: torch.device, settings: Settings) -> torch.Tensor:
    return torch.from_numpy(array).to(device).to(getattr(torch, settings.sums))


def _gallery(block: np.ndarray, device: torch.device, settings: Settings) -> torch.Tensor:
    """Vectors [n, Q, D] of a block, in the precision of the sums."""
    vectors = _tensor(block, device, settings)
    vectors_NQD = vectors[:, None] if vectors.dim() == 2 else vectors
    return torch.nn.functional.normalize(vectors_NQD, dim=-1) if settings.normalize else vectors_NQD


def _block_scores(query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
    """Scores [B, N] in float32, by the package's one scorer."""
    return score(query_BD, gallery_NQD).to(torch.float32)


def _blocks(question: Question, shard: Shard, settings: Settings) -> Iterator[tuple[int, int]]:
    tokens = shard.vectors.shape[1] if shard.vectors.ndim == 3 else 1
    width = 8 if settings.sums == "float64" else 4
    # a score in double and single precision, a mask, and the vector itself twice
    row = len(question.query_BD) * (tokens * width + 12) + 3 * width * tokens * question.query_BD.shape[1]
    size = max(1, settings.budget // row)
    for start in range(0, len(shard), size):
        yield start, min(start + size, len(shard))


def _located(wanted: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions in `wanted` whose value is in `keys`, and its position there."""
    order = np.argsort(keys, kind="stable")
    places = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
    hits = np.flatnonzero(keys[order[places]] == wanted)
    return hits, order[places[hits]]


@torch.inference_mode()
def _pair_scores(
    question: Question, shard: Shard, settings: Settings, positions: np.ndarray, places: np.ndarray
) -> np.ndarray:
    """Scores [p] of probes with their own queries, a bounded number at a time."""
    device, found = torch.device(settings.device), []
    tokens = int(np.prod(shard.vectors.shape[1:]))
    size = max(1, settings.budget // (32 * tokens))
    rows = places if shard.picked is None else shard.picked[places]
    for start in range(0, len(positions), size):
        own, block = positions[start : start + size], _native(shard.vectors[rows[start : start + size]])
        gallery_NQD = _gallery(block, device, settings)
        query_BD = _tensor(question.query_BD[question.probe_query[own]], device, settings)
        scores = torch.einsum("nqd,nd->nq", gallery_NQD, query_BD).amax(dim=1).to(torch.float32).cpu().numpy()
        found.append(scores)
    return np.concatenate(found)


def _threshold_table(
    question: Question, scores_P: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, list[tuple[np.ndarray, np.ndarray]]]:
    """Probe scores as columns [J, B] (inf where a query has fewer), and for each column its queries and probes."""
    counts = np.bincount(question.probe_query, minlength=len(question.query_BD))
    starts = np.cumsum(counts) - counts
    deepest = int(counts.max(initial=0))
    table = np.full((deepest, len(counts)), np.inf, dtype=np.float32)
    slots = []
    for depth in range(deepest):
        queries = np.flatnonzero(counts > depth)
        table[depth, queries] = scores_P[starts[queries] + depth]
        slots.append((queries, starts[queries] + depth))
    return torch.from_numpy(table).to(device), slots


def _count(
    scores_BN: torch.Tensor, thresholds: torch.Tensor, slots: list[tuple[np.ndarray, np.ndarray]], above: np.ndarray
) -> None:
    """Add to `above` how many scores of each query reach each of its probes; hidden ones (NaN) reach none."""
    for column_B, (queries, probes) in zip(thresholds, slots, strict=True):
        chosen = scores_BN if len(queries) == len(scores_BN) else scores_BN[torch.from_numpy(queries)]
        limits = column_B if len(queries) == len(column_B) else column_B[torch.from_numpy(queries)]
        above[probes] += (chosen >= limits[:, None]).sum(dim=1).cpu().numpy()


def _hide(scores_BN: torch.Tensor, queries: np.ndarray, rows: np.ndarray, keys: np.ndarray) -> None:
    """Set the scores of some (query, row) pairs to NaN, which is neither above a probe nor in a top K."""
    hits, places = _located(rows, keys)
    if len(hits):
        scores_BN[torch.from_numpy(queries[hits]), torch.from_numpy(places)] = torch.nan


def _refuse_nan(scores_BN: torch.Tensor, query_ids: Sequence[str]) -> None:
    broken_B = torch.isnan(scores_BN).any(dim=1)
    if bool(broken_B.any()):
        name, count = query_ids[int(broken_B.int().argmax())], int(broken_B.sum())
        raise DataError(
            f"Query {name!r} has a score that is not a number ({count} of {len(query_ids)} queries do). "
            "Its vector or the gallery's hold NaN: make the features again."
        )


def _nothing(queries: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((queries, top_k), -np.inf, np.float32), np.full((queries, top_k), _NO_KEY, np.int64)


Flat = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Query, score and row of some answers."""


def _candidates(scores_BN: torch.Tensor, best_BK: np.ndarray, keys: np.ndarray, top_k: int) -> Flat:
    """Answers of a block that may belong to the top K: all that reach the K-th of the block and of those kept."""
    clean_BN = torch.nan_to_num(scores_BN, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    floor_B = torch.from_numpy(best_BK[:, -1]).to(scores_BN.device)
    if scores_BN.shape[1] > top_k:
        floor_B = torch.maximum(floor_B, torch.topk(clean_BN, top_k, dim=1).values[:, -1])
    found = torch.nonzero(scores_BN >= floor_B[:, None])
    queries, columns = found[:, 0].cpu().numpy(), found[:, 1].cpu().numpy()
    return queries, scores_BN[found[:, 0], found[:, 1]].cpu().numpy(), keys[columns]


def _flat(scores_BK: np.ndarray, rows_BK: np.ndarray) -> Flat:
    queries, places = np.nonzero(rows_BK != _NO_KEY)
    return queries, scores_BK[queries, places], rows_BK[queries, places]


def _merged_top(best: tuple[np.ndarray, np.ndarray], more: Flat, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Top K of kept and further answers: higher score first, then the smaller row."""
    parts = [np.concatenate(pair) for pair in zip(_flat(*best), more, strict=True)]
    queries, scores, rows = parts
    order = np.lexsort((rows, -scores, queries))
    queries, scores, rows = queries[order], scores[order], rows[order]
    starts = np.searchsorted(queries, np.arange(len(best[0])))
    places = np.arange(len(queries)) - starts[queries]
    kept = places < top_k
    result_scores, result_rows = _nothing(len(best[0]), top_k)
    result_scores[queries[kept], places[kept]] = scores[kept]
    result_rows[queries[kept], places[kept]] = rows[kept]
    return result_scores, result_rows


def check_question(question: Question, shard: Shard) -> None:
    """Refuse queries that are not finite or do not fit a gallery's vectors.

    Raises DataError naming the query, or both shapes.
    """
    wanted, shape = question.query_BD.shape[1], shard.vectors.shape
    if len(shape) not in (2, 3) or shape[-1] != wanted:
        raise DataError(
            f"Gallery vectors of shape {shape} do not fit queries of width {wanted}; [N, {wanted}] or "
            f"[N, tokens, {wanted}] is needed."
        )
    broken_B = ~np.isfinite(question.query_BD).all(axis=1)
    if broken_B.any():
        name = question.query_ids[int(broken_B.argmax())]
        raise DataError(f"The vector of query {name!r} holds NaN or infinity; make the query features again.")


def _refuse_broken(block: np.ndarray, keys: np.ndarray, question: Question) -> None:
    broken_N = ~torch.isfinite(torch.from_numpy(block)).flatten(1).all(dim=1)
    if bool(broken_N.any()):
        raise _broken_image(question, int(keys[int(broken_N.int().argmax())]))


def _broken_image(question: Question, row: int) -> DataError:
    name = repr(question.image_ids[row]) if question.image_ids else f"in row {row}"
    return DataError(f"The vector of gallery image {name} holds NaN or infinity; make the gallery features again.")
