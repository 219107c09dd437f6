"""The one scorer: training, evaluation and serving call these functions.

s_ij = max_k <q_i, g_jk> over an image's tokens (BLIP-2, SPRC, PTHA); with one token per image: the plain dot product.
"""

from collections.abc import Iterator

import torch


def score(query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
    """Similarity of every query to every image: `[B, N]`, in [-1, 1] for normalised vectors, higher is better."""
    images, tokens, width = gallery_NQD.shape
    flat_BM = query_BD @ gallery_NQD.reshape(images * tokens, width).T
    return flat_BM.view(query_BD.shape[0], images, tokens).amax(dim=2)


def score_blocks(
    query_BD: torch.Tensor, gallery_NQD: torch.Tensor, rows: int = 256
) -> Iterator[tuple[int, torch.Tensor]]:
    """`score` over blocks of queries, for galleries whose full matrix is too large.

    Yields:
        Index of the block's first query, and its scores `[<= rows, N]`.
    """
    for begin in range(0, query_BD.shape[0], rows):
        yield begin, score(query_BD[begin : begin + rows], gallery_NQD)
