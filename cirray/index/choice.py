"""Which FAISS index for these vectors: some kinds are built and measured, and the quickest that finds enough is taken.

Recall is the share of the true best answers (a scan's) that an index finds. The queries are made of the gallery's own
vectors: half are images that are left out of their own answers, half the sum of two images, as a composed query lies
between what it shows and what it asks for.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cirray.index.config import FaissConfig
from cirray.index.exact import scan
from cirray.index.faiss_index import FILE, build_faiss, over, tuned
from cirray.index.faiss_library import faiss_library
from cirray.index.protocol import VectorIndex
from cirray.index.similarity import pooled

K = 10
"""Answers whose recall is measured."""
BATCH = 32
"""Queries of one pass, as a busy service has them."""
SECONDS = 0.3
"""Time of one measurement of speed."""
_PER_LIST = 39
"""Vectors that FAISS wants for each centroid it trains."""
_FEW = 1000
"""Fewer vectors are scanned in no time, and train nothing."""
_PROBES = (1, 4, 16, 64, 256)
_EFS = (32, 128, 512)


@dataclass(frozen=True)
class Measured:
    """One kind of index with its search parameters."""

    settings: FaissConfig
    recall: float
    """Share of the true best ten that it finds."""
    per_second: float
    """Queries a second, one thread, in batches of 32."""
    size: int
    """Bytes of the FAISS index; the vectors themselves lie beside every kind."""
    build_s: float
    """Seconds to train and fill it."""

    @property
    def name(self) -> str:
        """How a table calls it: `IVF512,SQ8 nprobe=8`, `pooled Flat`."""
        kind = "pooled " if self.settings.strategy == "pooled_rerank" else ""
        return f"{kind}{self.settings.factory} {self.settings.search_parameters}".rstrip()


def measured(tokens_NQD: np.ndarray, target: float, queries: int = 256, seed: int = 0) -> list[Measured]:
    """Build and measure each kind of index, with more and more effort a search until it finds enough.

    Returns: What was measured, in the order of `factories`.
    """
    asked_BD, own_B = sampled(tokens_NQD, queries, seed)
    truth = [_without(rows, own) for (rows, _), own in zip(scan(asked_BD, tokens_NQD, K + 1), own_B, strict=True)]
    ids = [f"{row:012d}" for row in range(len(tokens_NQD))]  # ascending, as an index's are
    found: list[Measured] = []
    for base, parameters in factories(*tokens_NQD.shape):
        begin = time.perf_counter()
        built = build_faiss(tokens_NQD, base)
        seconds, size = time.perf_counter() - begin, _size(built)
        for parameter in parameters:
            settings = base.model_copy(update={"search_parameters": parameter})
            tuned(built, parameter)
            index = over(ids, tokens_NQD, built, settings)
            answers = _answers(index, asked_BD, own_B)
            recall = sum(len(set(a) & set(b)) for a, b in zip(answers, truth, strict=True)) / sum(map(len, truth))
            found.append(Measured(settings, recall, _speed(index, asked_BD), size, seconds))
            if recall >= target:
                break
    return found


def chosen(found: Sequence[Measured], target: float) -> Measured:
    """The quickest that reaches the target; of nearly equal ones (5 %) the smallest. Exact ones always reach it."""
    enough = [one for one in found if one.recall >= target]
    best = max(one.per_second for one in enough)
    return min((one for one in enough if one.per_second >= 0.95 * best), key=lambda one: one.size)


def frontier(found: Sequence[Measured]) -> list[Measured]:
    """Those that no other one beats in recall, speed and size together; the most exact first."""

    def beaten(one: Measured) -> bool:
        mine = (one.recall, one.per_second, -one.size)
        others = ((other.recall, other.per_second, -other.size) for other in found)
        return any(all(a >= b for a, b in zip(theirs, mine, strict=True)) and theirs != mine for theirs in others)

    return sorted((one for one in found if not beaten(one)), key=lambda one: (-one.recall, -one.per_second))


def factories(count: int, tokens: int, width: int) -> Iterator[tuple[FaissConfig, tuple[str, ...]]]:
    """Kinds of index for so many vectors, each with its search parameters in order of effort."""
    strategies = ("exact_tokens",) if tokens == 1 else ("exact_tokens", "pooled_rerank")
    for strategy in strategies:
        vectors = count * tokens if strategy == "exact_tokens" else count
        lists = 2 ** int(np.log2(max(1.0, min(4 * np.sqrt(vectors), vectors / _PER_LIST))))
        kinds: list[tuple[str, tuple[str, ...]]] = [("Flat", ("",))]
        if vectors >= _FEW:
            kinds.append(("HNSW32", tuple(f"efSearch={effort}" for effort in _EFS)))
            probes = tuple(f"nprobe={lists_read}" for lists_read in _PROBES if lists_read <= lists)
            codes = ["Flat", "SQ8"] + ([f"PQ{width // 4}x4fs"] if width % 4 == 0 else [])
            kinds += [(f"IVF{lists},{code}", probes) for code in codes]
        for factory, parameters in kinds:
            yield FaissConfig(factory=factory, strategy=strategy), parameters  # type: ignore[arg-type]


def sampled(tokens_NQD: np.ndarray, queries: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries [B, D] of the gallery's own vectors, and the row that each leaves out of its answers; -1: none."""
    rng = np.random.default_rng(seed)
    count = len(tokens_NQD)
    rows_B, others_B = rng.integers(0, count, queries), rng.integers(0, count, queries)
    own_BD, other_BD = (pooled(np.asarray(tokens_NQD[rows])) for rows in (rows_B, others_B))
    alone_B = np.arange(queries) % 2 == 0
    vectors_BD = np.where(alone_B[:, None], own_BD, own_BD + other_BD).astype(np.float32)
    norms_B1 = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    return vectors_BD / np.maximum(norms_B1, 1e-12), np.where(alone_B, rows_B, -1)


def _answers(index: VectorIndex, asked_BD: np.ndarray, own_B: np.ndarray) -> list[Sequence[int]]:
    found, _ = index.search(asked_BD, K + 1)
    return [_without([int(name) for name in names], own) for names, own in zip(found, own_B, strict=True)]


def _without(rows: Any, own: int) -> list[int]:
    return [int(row) for row in rows if row != own][:K]


def _speed(index: VectorIndex, asked_BD: np.ndarray) -> float:
    """Queries a second in batches; the first batch warms up and is not counted."""
    batches = [asked_BD[start : start + BATCH] for start in range(0, len(asked_BD), BATCH)]
    index.search(batches[0], K)
    begin, done, turn = time.perf_counter(), 0, 0
    while time.perf_counter() - begin < SECONDS:
        done += len(batches[turn % len(batches)])
        index.search(batches[turn % len(batches)], K)
        turn += 1
    return done / (time.perf_counter() - begin)


def _size(index: Any) -> int:
    with TemporaryDirectory() as folder:
        faiss_library().write_index(index, str(Path(folder) / FILE))
        return (Path(folder) / FILE).stat().st_size
