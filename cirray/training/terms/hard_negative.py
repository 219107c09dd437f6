"""VDG's contrastive terms: HN-NCE in both directions, and its sum over the real rows and over all rows.

L_tcc = L_c(B) + L_c(B u B') with L_c = L_q2t + L_t2q, B real rows, B' pseudo rows; L_q2t is HN-NCE (its weights and
equation: `cirray/losses/hard_negative.py`; Jang et al., 2024; docs/PAPERS.md#paired-batches).
"""

from dataclasses import replace

import torch

from cirray.losses.hard_negative import hard_negative_nce, powers
from cirray.losses.sums import RowSums
from cirray.models.scoring import score
from cirray.training.terms.base import TERMS, Term, TermInput
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
    sums = (_to_targets(given, settings, absent_N), _to_queries(given, settings, absent_N))
    first_B, second_B = (hard_negative_nce(one, settings.alpha, settings.beta, settings.detach_weights) for one in sums)
    return given.mean(first_B + second_B, weight_B)


def _to_targets(given: TermInput, settings: HardNegativeConfig, absent_N: torch.Tensor | None) -> RowSums:
    """Local queries against the images of all ranks: targets first, then (improved) references."""
    found = given.candidates
    hidden = replace(found.hidden, absent_N=None if absent_N is None else absent_N[found.row_N])
    return given.sums(given.output.query_BD, found.tokens_NQD, hidden, powers(settings.beta))


def _to_queries(given: TermInput, settings: HardNegativeConfig, absent_N: torch.Tensor | None) -> RowSums:
    """Local targets against the queries of all ranks; queries that lead to the same target are no negatives of it."""
    rows, further_BK = given.gather.rows, given.batch.positive_key_BK
    hidden = given.hidden(
        rows(given.batch.target_key_B), leads_NK=None if further_BK is None else rows(further_BK), absent_N=absent_N
    )
    return given.sums(given.output.target_BQD, rows(given.output.query_BD), hidden, powers(settings.beta), _turned)


def _turned(target_BQD: torch.Tensor, query_ND: torch.Tensor) -> torch.Tensor:
    """Similarities of targets to queries: `[B, N]`."""
    return score(query_ND, target_BQD).T
