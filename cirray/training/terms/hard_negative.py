"""VDG's contrastive terms: HN-NCE in both directions, and its sum over the real rows and over all rows.

L_tcc = L_c(B) + L_c(B u B') with L_c = L_q2t + L_t2q, B real rows, B' pseudo rows; L_q2t is HN-NCE (its weights and
equation: `cirray/losses/hard_negative.py`; Jang et al., 2024; docs/PAPERS.md#paired-batches).
"""

import torch

from cirray.losses.duplicates import other_copies
from cirray.losses.hard_negative import hard_negative_nce
from cirray.models.scoring import score
from cirray.training.terms.base import TERMS, Term, TermInput, same_key
from cirray.training.terms.config import HardNegativeConfig


@TERMS.register("hn_nce")
class HardNegatives(Term[HardNegativeConfig]):
    """L_c = L_q2t + L_t2q: the sum of the two directions (with beta 0 and alpha 1: twice symmetric InfoNCE's mean)."""

    contrasts = True

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        return both_directions(given, self.settings)


@TERMS.register("tcc")
class ConcatenatedContrast(HardNegatives):
    """L_tcc = L_c(B) + L_c(B u B'): real rows among themselves, then with the pseudo rows, which are never alone.

    B are the rows whose source is one of `training.real_sources`; without any pseudo row the value is 2 L_c(B).
    """

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        real_B = given.batch.real_B
        if real_B is None:
            return 2 * both_directions(given, self.settings)
        return both_directions(given, self.settings, real_B) + both_directions(given, self.settings)


def both_directions(given: TermInput, settings: HardNegativeConfig, rows_B: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted mean over all ranks' rows of both directions of HN-NCE; `rows_B` is True for the rows that take part,
    also as negatives.
    """
    batch = given.batch
    weight_B = batch.weight_B if rows_B is None else batch.weight_B * rows_B.to(batch.weight_B.dtype)
    # integers, as not every collective takes booleans
    absent_N = None if rows_B is None else given.gather.rows(rows_B.long()) == 0
    return given.mean(_to_targets(given, settings, absent_N) + _to_queries(given, settings, absent_N), weight_B)


def _to_targets(given: TermInput, settings: HardNegativeConfig, absent_N: torch.Tensor | None) -> torch.Tensor:
    """Local queries against the images of all ranks: targets first, then (improved) references."""
    found = given.candidates
    absent_C = None if absent_N is None else absent_N[found.row_N]
    hidden_BN = _either(found.hidden_BN, absent_C, found.positive_B)
    return _nce(score(given.output.query_BD, found.tokens_NQD), found.positive_B, hidden_BN, given, settings)


def _to_queries(given: TermInput, settings: HardNegativeConfig, absent_N: torch.Tensor | None) -> torch.Tensor:
    """Local targets against the queries of all ranks; queries for the same target are no negatives of it."""
    query_ND = given.gather.rows(given.output.query_BD)
    positive_B = given.candidates.positive_B
    key_N = given.gather.rows(given.batch.target_key_B)
    copies_BN = other_copies(key_N, positive_B) if given.config.mask_duplicates else None
    if given.batch.positive_key_BK is not None:  # a query that also leads to this target is no negative of it
        right_BN = same_key(given.batch.target_key_B, given.gather.rows(given.batch.positive_key_BK)).T
        copies_BN = right_BN if copies_BN is None else copies_BN | right_BN
    hidden_BN = _either(copies_BN, absent_N, positive_B)
    return _nce(score(query_ND, given.output.target_BQD).T, positive_B, hidden_BN, given, settings)


def _nce(
    scores_BN: torch.Tensor, positive_B: torch.Tensor, hidden_BN: torch.Tensor | None, given: TermInput,
    settings: HardNegativeConfig,
) -> torch.Tensor:  # fmt: skip
    return hard_negative_nce(
        scores_BN, positive_B, given.output.temperature, hidden_BN, settings.alpha, settings.beta,
        settings.detach_weights,
    )  # fmt: skip


def _either(
    copies_BN: torch.Tensor | None, absent_N: torch.Tensor | None, positive_B: torch.Tensor
) -> torch.Tensor | None:
    """Copies of the own image or absent rows; a row's own positive stays, so that absent rows have a finite loss."""
    if absent_N is None:
        return copies_BN
    hidden_BN = absent_N.expand(len(positive_B), -1).scatter(1, positive_B[:, None], False)
    return hidden_BN if copies_BN is None else hidden_BN | copies_BN
