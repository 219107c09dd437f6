"""FAISS searches among chosen images alone: a bitmap of their vectors, handed to every layer of an index."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cirray.index.faiss_library import faiss_library

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
