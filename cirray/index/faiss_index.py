"""FAISS indexes over token vectors, exact or approximate, scored and ordered like the NumPy twin.

FAISS finds candidate images; their scores are then computed by `similarity.token_scores`, so that a score (and the
order of equal scores) never depends on the index. With the factory `Flat` the answer is exact: more token hits are
asked for until the k-th candidate's score is above the last hit by more than float32 rounding.
"""

import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cirray.core.errors import ArtifactError, ConfigError
from cirray.index.config import INDEXES, FaissConfig
from cirray.index.exact import scan
from cirray.index.faiss_library import faiss_library, is_there
from cirray.index.protocol import Backend, Found, RowIndex, VectorIndex
from cirray.index.similarity import best_rows, pooled, rounding_margin, token_scores

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(queries [B, D], hits H) -> scores and vector numbers [B, H], -1 where fewer were found."""


def selecting(index: Any, rows: np.ndarray, count: int) -> Search:
    """A search of an index over `count` images that looks at the vectors of some rows alone.

    It raises RuntimeError where this kind of index takes no selection, or does not keep it.
    """
    per_image = index.ntotal // count
    chosen_N = np.zeros(count, bool)
    chosen_N[rows] = True
    bits = np.packbits(np.repeat(chosen_N, per_image), bitorder="little")
    parameters = _parameters(index, faiss_library().IDSelectorBitmap(bits), len(rows) / count)

    def search(queries_BD: np.ndarray, hits: int) -> tuple[np.ndarray, np.ndarray]:
        scores_BH, vectors_BH = index.search(queries_BD, hits, params=parameters)
        if not chosen_N[vectors_BH[vectors_BH >= 0] // per_image].all():
            raise RuntimeError("This FAISS index does not keep to a selection.")
        return scores_BH, vectors_BH

    return search


def _parameters(index: Any, selector: Any, share: float) -> Any:
    """Search parameters with a selector for an index and what it wraps.

    Where an index looks at a part of its vectors, that part grows by the inverse of the chosen share, so that it sees
    as many of the chosen ones as it would see without a selection.
    """
    faiss = faiss_library()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, selector, share))
    if isinstance(index, faiss.IndexRefine):
        base = _parameters(index.base_index, selector, share)
        return faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=base)
    if isinstance(index, faiss.IndexIVF):
        probes = min(index.nlist, int(np.ceil(index.nprobe / share)))
        return faiss.SearchParametersIVF(sel=selector, nprobe=probes, max_codes=index.max_codes)
    if isinstance(index, faiss.IndexHNSW):
        width = min(index.ntotal, int(np.ceil(index.hnsw.efSearch / share)))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=width)
    return faiss.SearchParameters(sel=selector)


FILE = "index.faiss"
SCANNED_VECTORS = 20_000
"""Up to so many allowed vectors are scanned, which is exact in every kind of index and quicker than asking it."""
_ADD_VECTORS = 65_536
_CPLUSPLUS = re.compile(r"^Error in .*? at \S+:\d+: (Error: )?")
_WIDEN = 4


class FaissRows(RowIndex):
    """What both strategies do about rows that may be answered: a few are scanned, of many FAISS is told by a bitmap."""

    def __init__(self, ids: Sequence[str], tokens_NQD: np.ndarray, index: Any, config: FaissConfig) -> None:
        """Wrap a FAISS index over `tokens_NQD`; `ids` ascending."""
        super().__init__(ids, tokens_NQD)
        self._index, self._config = index, config

    def _found(self, queries_BD: np.ndarray, k: int, rows: np.ndarray | None) -> Sequence[Found]:
        if rows is None:
            with _threads(len(queries_BD)):
                return self._asked(queries_BD, k, self._index.search, None)
        if len(rows) * self._tokens_NQD.shape[1] <= SCANNED_VECTORS:
            return scan(queries_BD, self._tokens_NQD, k, rows)
        try:
            with _threads(len(queries_BD)):
                found = list(self._asked(queries_BD, k, selecting(self._index, rows, len(self._ids)), rows))
        except RuntimeError:  # a kind of FAISS index that takes no selection
            return scan(queries_BD, self._tokens_NQD, k, rows)
        short = [place for place, (best, _) in enumerate(found) if len(best) < min(k, len(rows))]
        if short:
            for place, exact in zip(short, scan(queries_BD[short], self._tokens_NQD, k, rows), strict=True):
                found[place] = exact
        return found

    @abstractmethod
    def _asked(self, queries_BD: np.ndarray, k: int, search: Search, rows: np.ndarray | None) -> Sequence[Found]:
        """Best (rows, scores) of each query by a FAISS search that sees the images of some rows; None: all."""

    def _seen(self, rows: np.ndarray | None) -> int:
        return len(self._ids) if rows is None else len(rows)


class FaissTokenIndex(FaissRows):
    """Every token vector in one FAISS index, hits grouped by image (`strategy: exact_tokens`)."""

    def __init__(self, ids: Sequence[str], tokens_NQD: np.ndarray, index: Any, config: FaissConfig) -> None:
        """Wrap a FAISS index over the N*Q rows of `tokens_NQD`; `ids` ascending."""
        super().__init__(ids, tokens_NQD, index, config)
        self._certain = config.factory == "Flat"
        self._largest_norm = largest_norm(tokens_NQD) if self._certain else 0.0

    def _asked(self, queries_BD: np.ndarray, k: int, search: Search, rows: np.ndarray | None) -> Sequence[Found]:
        answers, vectors = min(k, self._seen(rows)), self._seen(rows) * self._tokens_NQD.shape[1]
        found: dict[int, Found] = {}
        waiting, hits = list(range(len(queries_BD))), answers * self._config.oversample
        while len(waiting) and hits * _WIDEN <= vectors:
            scores_BH, vectors_BH = search(queries_BD[waiting], hits)
            for number, scores_H, vectors_H in zip(waiting, scores_BH, vectors_BH, strict=True):
                result = self._grouped(queries_BD[number], scores_H, vectors_H, answers)
                if result is not None:
                    found[number] = result
            waiting, hits = [number for number in waiting if number not in found], hits * _WIDEN
        if waiting:
            found.update(zip(waiting, scan(queries_BD[waiting], self._tokens_NQD, k, rows), strict=True))
        return [found[number] for number in range(len(queries_BD))]

    def _grouped(self, query_D: np.ndarray, scores_H: np.ndarray, vectors_H: np.ndarray, k: int) -> Found | None:
        """Best images among the hits, or None when another image might belong to them.

        An approximate index that finds no more (it pads with -1) may answer fewer than k.
        """
        exhausted = bool((vectors_H < 0).any())
        scores_H, vectors_H = scores_H[vectors_H >= 0], vectors_H[vectors_H >= 0]
        rows, first = np.unique(vectors_H // self._tokens_NQD.shape[1], return_index=True)
        if len(rows) < k and (self._certain or not exhausted):
            return None
        margin = rounding_margin(query_D, len(query_D), self._largest_norm)
        if self._certain:
            rows = _possible(rows, scores_H[first], k, margin)
        found = best_rows(token_scores(query_D, self._tokens_NQD[rows]), rows, k)
        return None if self._certain and found[1][-1] <= scores_H[-1] + margin else found


class PooledRerankIndex(FaissRows):
    """One pooled vector an image finds candidates, their tokens rank them (`strategy: pooled_rerank`)."""

    def _asked(self, queries_BD: np.ndarray, k: int, search: Search, rows: np.ndarray | None) -> Sequence[Found]:
        _, rows_BC = search(queries_BD, min(k * self._config.oversample, self._seen(rows)))
        found = []
        for query_D, rows_C in zip(queries_BD, rows_BC, strict=True):
            candidates = np.sort(rows_C[rows_C >= 0])
            found.append(best_rows(token_scores(query_D, self._tokens_NQD[candidates]), candidates, k))
        return found


@INDEXES.register("faiss")
class FaissBackend(Backend[FaissConfig]):
    """One FAISS index beside the vectors."""

    def check(self, width: int) -> None:
        """Refuse a factory or search parameters that FAISS does not understand at this width."""
        tuned(_from_factory(width, self.settings), self.settings.search_parameters)

    def write(self, folder: Path, tokens_NQD: np.ndarray) -> list[str]:
        """Train, fill and write the FAISS index."""
        faiss_library().write_index(build_faiss(tokens_NQD, self.settings), str(folder / FILE))
        return [FILE]

    def build(self, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
        """Train and fill a FAISS index."""
        return over(ids, tokens_NQD, build_faiss(tokens_NQD, self.settings), self.settings)

    def open(self, folder: Path, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
        """Read the FAISS index."""
        try:
            index = faiss_library().read_index(str(folder / FILE))
        except RuntimeError as error:
            raise ArtifactError(
                f"FAISS cannot read {str(folder / FILE)!r}: {_reason(error)}. Build the index again."
            ) from None
        return over(ids, tokens_NQD, index, self.settings)


def over(ids: Sequence[str], tokens_NQD: np.ndarray, index: Any, config: FaissConfig) -> VectorIndex:
    """The search that a config's strategy asks for, over a FAISS index of `build_faiss`."""
    search = PooledRerankIndex if config.strategy == "pooled_rerank" else FaissTokenIndex
    return search(ids, tokens_NQD, index, config)


def _possible(rows: np.ndarray, coarse: np.ndarray, k: int, margin: float) -> np.ndarray:
    """Rows that may be among the k best when every coarse score is within `margin` of the true one."""
    threshold = np.partition(coarse, len(coarse) - k)[len(coarse) - k]
    return rows[coarse >= threshold - 2.0 * margin]


def build_faiss(tokens_NQD: np.ndarray, config: FaissConfig) -> Any:
    """Train and fill the FAISS index that a config asks for (inner product).

    Raises ConfigError for a factory string or search parameters that FAISS refuses, or too few vectors to train it.
    """
    count, tokens, width = tokens_NQD.shape
    per_image = config.strategy == "pooled_rerank"
    total = count if per_image else count * tokens
    index = _from_factory(width, config)
    if not index.is_trained:
        rng = np.random.default_rng(config.seed)
        rows = np.sort(rng.permutation(count)[: max(1, config.train_sample // (1 if per_image else tokens))])
        _train(index, _vectors(np.asarray(tokens_NQD[rows]), per_image), config, total)
    step = max(1, _ADD_VECTORS // tokens)
    for start in range(0, count, step):
        index.add(_vectors(np.asarray(tokens_NQD[start : start + step]), per_image))
    tuned(index, config.search_parameters)
    return index


def tuned(index: Any, parameters: str) -> None:
    """Set FAISS search parameters by name (`nprobe=16,efSearch=64`)."""
    if not parameters:
        return
    space = faiss_library().ParameterSpace()
    try:
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise ConfigError(
            f"index.settings.search_parameters {parameters!r} does not fit the index: {_reason(error)}. "
            "Use name=value pairs such as nprobe=16 (IVF) or efSearch=64 (HNSW)."
        ) from None


class _Limit:
    """What `limit_faiss_threads` has set; None: as OpenMP would have it."""

    threads: int | None = None


def limit_faiss_threads(threads: int) -> None:
    """Set the most OpenMP threads of a FAISS search in this process, and of what else FAISS does in this thread."""
    _Limit.threads = threads
    if is_there():
        faiss_library().omp_set_num_threads(threads)


@contextmanager
def _threads(queries: int) -> Iterator[None]:
    """No more OpenMP threads than queries, each of which FAISS gives to one: a search would wait for the others to get
    a core. OpenMP has a number for every thread that asks it.
    """
    faiss = faiss_library()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(1, min(_Limit.threads or before, queries)))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def largest_norm(tokens_NQD: np.ndarray) -> float:
    """Largest Euclidean norm of any token vector, read in chunks."""
    step = max(1, _ADD_VECTORS // tokens_NQD.shape[1])
    return max(
        float(np.linalg.norm(np.asarray(tokens_NQD[start : start + step], np.float32), axis=2).max())
        for start in range(0, len(tokens_NQD), step)
    )


def _vectors(tokens_NQD: np.ndarray, per_image: bool) -> np.ndarray:
    if per_image:
        return np.ascontiguousarray(pooled(tokens_NQD))
    return np.ascontiguousarray(tokens_NQD.reshape(-1, tokens_NQD.shape[2]), dtype=np.float32)


def _from_factory(width: int, config: FaissConfig) -> Any:
    faiss = faiss_library()
    try:
        return faiss.index_factory(width, config.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"index.settings.factory {config.factory!r} is not a FAISS factory string for vectors of width {width}: "
            f"{_reason(error)}. Known good: Flat; IVF256,Flat; IVF1024,SQ8; HNSW32; IVF1024,PQ64x4fs."
        ) from None


def _train(index: Any, vectors: np.ndarray, config: FaissConfig, total: int) -> None:
    try:
        index.train(vectors)
    except RuntimeError as error:
        raise ConfigError(
            f"index.settings.factory {config.factory!r} cannot be trained on {len(vectors):,} vectors of {total:,}: "
            f"{_reason(error)}. Use Flat, or a smaller number of lists (about 4 sqrt(N))."
        ) from None


def _reason(error: Exception) -> str:
    """FAISS's message without the C++ signature and source line in front."""
    return _CPLUSPLUS.sub("", " ".join(str(error).split()))[:200].rstrip(".")
