"""The similarity of the index in NumPy, and the order of its answers. N images, Q tokens, D width, C candidates.

s(query, image) = max over the image's Q tokens of <query, token> (BLIP-2's and SPRC's retrieval score; Q = 1 is a plain
dot product). Stored tokens are fp16; products are summed in float64 and rounded once to float32, so that a score does
not depend on implementation or batch.
"""

import numpy as np


def token_scores(query_D: np.ndarray, tokens_NQD: np.ndarray) -> np.ndarray:
    """Scores [N] (float32) of one query against images given by their tokens."""
    count, tokens, width = tokens_NQD.shape
    flat = tokens_NQD.reshape(count * tokens, width).astype(np.float64)
    return (flat @ query_D.astype(np.float64)).reshape(count, tokens).max(axis=1).astype(np.float32)


def batch_token_scores(queries_BD: np.ndarray, tokens_NQD: np.ndarray) -> np.ndarray:
    """Scores [B, N] (float32) of several queries against the same images."""
    count, tokens, width = tokens_NQD.shape
    flat = tokens_NQD.reshape(count * tokens, width).astype(np.float64)
    products = queries_BD.astype(np.float64) @ flat.T
    return products.reshape(len(queries_BD), count, tokens).max(axis=2).astype(np.float32)


def best_rows(scores_N: np.ndarray, rows_N: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best (rows, scores): higher score first, then the smaller row; rows are in id order in every index."""
    if len(scores_N) > k:
        threshold = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        keep = scores_N >= threshold
        scores_N, rows_N = scores_N[keep], rows_N[keep]
    order = np.lexsort((rows_N, -scores_N))[:k]
    return rows_N[order], scores_N[order]


def rounding_margin(query_D: np.ndarray, width: int, largest_norm: float) -> float:
    """Bound on the error of a float32 dot product of `width` terms: |fl(x.y) - x.y| <= width eps |x| |y|."""
    eps = float(np.finfo(np.float32).eps)
    return 2.0 * width * eps * float(np.linalg.norm(query_D)) * largest_norm


def pooled(tokens_NQD: np.ndarray) -> np.ndarray:
    """One vector [N, D] (float32) an image: the mean of its tokens, normalised; candidates are looked up by it."""
    mean_ND = tokens_NQD.astype(np.float32).mean(axis=1)
    return mean_ND / np.maximum(np.linalg.norm(mean_ND, axis=1, keepdims=True), 1e-12)
