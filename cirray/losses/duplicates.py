"""Which candidates are further copies of a query's own target (false negatives)."""

import torch


def other_copies(candidate_N: torch.Tensor, positive_B: torch.Tensor) -> torch.Tensor:
    """Mask of candidates that show a row's target image a second time.

    Returns: `[B, N]`, True where the key equals the positive's key but the index does not.
    """
    same_BN = candidate_N[None, :] == candidate_N[positive_B][:, None]
    index_N = torch.arange(candidate_N.shape[0], device=candidate_N.device)
    return same_BN & (index_N[None, :] != positive_B[:, None])
