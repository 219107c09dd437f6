"""Contrast of queries against a fixed bank of M images, held whole or in shards of rows (SPN).

L_i = -s(q_i, t_p) / tau + log sum_j exp(s(q_i, t_j) / tau) over all rows j that query i may see; gradient to queries
and temperature only. Partial maxima and sums of the shards give the exact value. The M scores of a query are not kept
for the backward pass but computed again, block by block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from cirray.losses.sums import NOTHING, ScoreFunction


class Collective(Protocol):
    """Collectives between shards. Every rank calls with equal shapes in the same order, without gradients."""

    @property
    def rank(self) -> int:
        """Index of the calling worker."""

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks, rank 0 first."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over ranks."""

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks."""


class Alone:
    """The collective of a process that holds the whole bank."""

    rank = 0

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows, unchanged."""
        return tensor

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself."""
        return value

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself."""
        return value


ALONE = Alone()


@dataclass(frozen=True)
class BankRows:
    """Rows `start ... start + m` of a bank, as this process holds them; fp16 rows are scored in the queries' type."""

    tokens_MQD: torch.Tensor
    start: int = 0

    def local(self, index_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of bank indices in these rows (0 if elsewhere), and whether they are here."""
        place_B = index_B - self.start
        here_B = (place_B >= 0) & (place_B < len(self.tokens_MQD))
        return place_B.masked_fill(~here_B, 0), here_B


def bank_infonce(
    score: ScoreFunction,
    query_BD: torch.Tensor,
    bank: BankRows,
    positive_B: torch.Tensor,
    temperature: torch.Tensor | float,
    hidden: Callable[[slice], torch.Tensor] | None = None,
    collective: Collective = ALONE,
    rows: int = 4096,
) -> torch.Tensor:
    """InfoNCE of each query against all rows of a bank.

    Args:
        score: `(query_BD, candidates_NQD) -> scores_BN`, the package's one scorer.
        query_BD: this rank's queries.
        bank: all rows, or this rank's shard of them.
        positive_B: index of each query's target in the whole bank.
        temperature: divides the scores.
        hidden: block of `bank`'s rows -> `[N, c]`, True where a query must not see a row, for the queries of all ranks
            (N = B where the bank is whole); never a positive.
        collective: how shards exchange maxima and sums; `ALONE` for a whole bank.
        rows: bank rows per block.

    Returns: Losses `[B]` of the own queries, in nats. With shards the gradients that each rank's queries get are whole;
    the temperature's is this rank's share for all queries, so that its mean over ranks is right.
    """
    tau = torch.as_tensor(temperature, dtype=torch.float32, device=query_BD.device)
    job = _Job(score, bank, hidden, collective, rows)
    return _BankLoss.apply(query_BD.float(), tau, positive_B, job)


@dataclass(frozen=True)
class _Job:
    score: ScoreFunction
    bank: BankRows
    hidden: Callable[[slice], torch.Tensor] | None
    collective: Collective
    rows: int

    def blocks(self) -> range:
        """First row of every block."""
        return range(0, len(self.bank.tokens_MQD), self.rows)

    def logits(self, query_ND: torch.Tensor, tau: torch.Tensor, begin: int) -> torch.Tensor:
        """Scores over temperature of one block; hidden rows are far below all others but finite (no NaN gradient)."""
        block = slice(begin, begin + self.rows)
        logits_NC = self.score(query_ND, self.bank.tokens_MQD[block].to(query_ND.dtype)).float() / tau
        return logits_NC if self.hidden is None else logits_NC.masked_fill(self.hidden(block), NOTHING)

    def positive_logits(self, query_ND: torch.Tensor, tau: torch.Tensor, positive_N: torch.Tensor) -> torch.Tensor:
        """Logits of the positives that are among these rows, 0 for the others."""
        place_N, here_N = self.bank.local(positive_N)
        own_NQD = self.bank.tokens_MQD[place_N].to(query_ND.dtype)
        best_N = (query_ND[:, None] * own_NQD).sum(dim=-1).amax(dim=1)
        return torch.where(here_N, best_N / tau, torch.zeros_like(best_N))


class _BankLoss(torch.autograd.Function):
    """The loss with its own backward pass, so that collectives run in one order on all ranks."""

    @staticmethod
    def forward(ctx: Any, query_BD: torch.Tensor, tau: torch.Tensor, positive_B: torch.Tensor, job: _Job) -> Any:
        """Partial maximum and sum over the own rows, then over ranks; the positive's logit comes from its owner."""
        share = job.collective
        query_ND, positive_N = share.rows(query_BD.detach()), share.rows(positive_B)
        top_N = query_ND.new_full((len(query_ND),), NOTHING)
        for begin in job.blocks():
            top_N = torch.maximum(top_N, job.logits(query_ND, tau, begin).amax(dim=1))
        top_N = share.largest(top_N)
        sum_N = torch.zeros_like(top_N)
        for begin in job.blocks():
            sum_N = sum_N + (job.logits(query_ND, tau, begin) - top_N[:, None]).exp().sum(dim=1)
        sum_N = share.total(sum_N)
        loss_N = top_N + sum_N.log() - share.total(job.positive_logits(query_ND, tau, positive_N))
        ctx.job, ctx.own = job, slice(share.rank * len(query_BD), (share.rank + 1) * len(query_BD))
        ctx.save_for_backward(query_ND, tau, positive_N, top_N + sum_N.log())
        return loss_N[ctx.own].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Gradients of all ranks' queries through the own rows, summed over ranks; the own queries' part."""
        query_ND, tau, positive_N, whole_N = ctx.saved_tensors
        job, share = ctx.job, ctx.job.collective
        weight_N = share.rows(gradients[0].contiguous())
        query_ND, tau = query_ND.detach().requires_grad_(), tau.detach().requires_grad_()
        query_grad, tau_grad = torch.zeros_like(query_ND), torch.zeros_like(tau)
        with torch.enable_grad():
            value = -(weight_N * job.positive_logits(query_ND, tau, positive_N)).sum()
            query_grad, tau_grad = _add(value, query_ND, tau, query_grad, tau_grad)
            for begin in job.blocks():
                value = (weight_N[:, None] * (job.logits(query_ND, tau, begin) - whole_N[:, None]).exp()).sum()
                query_grad, tau_grad = _add(value, query_ND, tau, query_grad, tau_grad)
        return share.total(query_grad)[ctx.own], tau_grad, None, None


def _add(
    value: torch.Tensor, query_ND: torch.Tensor, tau: torch.Tensor, query_grad: torch.Tensor, tau_grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both gradients plus those of one more part of the value."""
    more_query, more_tau = torch.autograd.grad(value, (query_ND, tau))
    return query_grad + more_query, tau_grad + more_tau
