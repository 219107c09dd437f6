"""What contrastive losses need of a row's logits, from the whole matrix of scores or in tiles.

A tile of scores is computed, folded into its rows' sums and dropped; the backward pass computes it again. So memory is
a tile's, whatever the batch, and value and gradient are those of the whole matrix (the sums as in Milakov and
Gimelshein, "Online normalizer calculation for softmax", 2018).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from cirray.losses.hidden import Hidden

ScoreFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(rows `[b, ...]`, candidates `[n, ...]`) -> scores `[b, n]`."""
NOTHING = -1e30
"""In place of log(0), so that a row without other candidates is not NaN."""
WHOLE_SCORES = 2**24
"""Scores, of every token of a candidate, up to which `chunk: auto` takes the whole matrix."""
_TILE, _ROWS = 2**24, 1024


@dataclass(frozen=True)
class RowSums:
    """Sums over what each row sees beside its positive, float32; logits are scores over the temperature."""

    own_B: torch.Tensor
    """The positive's logit."""
    others_BK: torch.Tensor
    """Logarithm of the sum of exp(power x logit), a column for each power; `NOTHING` where a row sees no other."""
    total_B: torch.Tensor | None
    """Sum of the logits; None where only label smoothing would read it, and there is none."""
    count_B: torch.Tensor
    """How many candidates these are."""


def sums_of(
    scores_BN: torch.Tensor, positive_B: torch.Tensor, temperature: torch.Tensor | float,
    hidden_BN: torch.Tensor | None = None, powers: tuple[float, ...] = (1.0,), totals: bool = True,
) -> RowSums:  # fmt: skip
    """The sums of a whole matrix: the simple twin of the tiles.

    `hidden_BN` is True where a row must not see a candidate, never for its positive.
    """
    logits_BN = scores_BN.float() / temperature
    other_BN = torch.ones_like(logits_BN, dtype=torch.bool) if hidden_BN is None else ~hidden_BN
    other_BN = other_BN.scatter(1, positive_B[:, None], False)
    others = [_log_sum(logits_BN, other_BN, power) for power in powers]
    return RowSums(
        logits_BN.gather(1, positive_B[:, None])[:, 0], torch.stack(others, dim=1),
        (logits_BN * other_BN).sum(dim=1) if totals else None, other_BN.sum(dim=1),
    )  # fmt: skip


def row_sums(
    score: ScoreFunction, rows_B: torch.Tensor, candidates_N: torch.Tensor, temperature: torch.Tensor | float,
    hidden: Hidden, powers: tuple[float, ...] = (1.0,), chunk: int | Literal["auto"] | None = "auto",
    totals: bool = True,
) -> RowSums:  # fmt: skip
    """The sums of B rows over N candidates.

    Args:
        score: the similarity.
        rows_B: vectors of the rows, first dimension B.
        candidates_N: vectors of the candidates, first dimension N.
        temperature: divides the scores.
        hidden: the rows' positives, and what they must not see.
        powers: factors of the logits in the sums.
        chunk: rows of a tile; null for the whole matrix, auto for the whole matrix up to `WHOLE_SCORES` scores.
        totals: also sum the logits themselves, which label smoothing reads.
    """
    high, wide = tile_of(len(rows_B), len(candidates_N), _tokens(rows_B) * _tokens(candidates_N), chunk)
    if (high, wide) == (len(rows_B), len(candidates_N)):
        scores_BN = score(rows_B, candidates_N)
        return sums_of(scores_BN, hidden.positive_B, temperature, hidden.mask(), powers, totals)
    job = _Job(score, hidden, powers, high, wide, totals)
    tau = torch.as_tensor(temperature, dtype=torch.float32, device=rows_B.device)
    return RowSums(*_Tiles.apply(rows_B, candidates_N, tau, job))


def tile_of(
    rows: int, candidates: int, tokens: int = 1, chunk: int | Literal["auto"] | None = "auto"
) -> tuple[int, int]:
    """Rows and candidates of a tile; all of them where the whole matrix is taken. `tokens` are a candidate's."""
    if chunk is None or (chunk == "auto" and rows * candidates * tokens <= WHOLE_SCORES):
        return rows, candidates
    high = min(_ROWS if chunk == "auto" else chunk, rows)
    return high, min(max(_TILE // (high * tokens), 1), candidates)


def _tokens(vectors: torch.Tensor) -> int:
    return vectors.shape[1] if vectors.ndim == 3 else 1


def _log_sum(logits_bn: torch.Tensor, other_bn: torch.Tensor, power: float) -> torch.Tensor:
    scaled_bn = logits_bn if power == 1 else power * logits_bn
    return scaled_bn.masked_fill(~other_bn, NOTHING).logsumexp(dim=1)


@dataclass(frozen=True)
class _Job:
    score: ScoreFunction
    hidden: Hidden
    powers: tuple[float, ...]
    high: int
    wide: int
    totals: bool

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of every tile."""
        for row in range(0, len(self.hidden.positive_B), self.high):
            for column in range(0, len(self.hidden.key_N), self.wide):
                yield slice(row, row + self.high), slice(column, column + self.wide)

    def logits(self, rows_b: torch.Tensor, candidates_n: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """A tile's logits `[b, n]`."""
        return self.score(rows_b, candidates_n).float() / tau

    def seen(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of a tile: the rows' positives, and what they see beside them."""
        own_bn = self.hidden.own(rows, columns)
        return own_bn, ~(self.hidden.mask(rows, columns) | own_bn)


class _Tiles(torch.autograd.Function):
    """The fields of `RowSums`, tile by tile, with gradients for rows, candidates and temperature."""

    @staticmethod
    def forward(
        ctx: Any, rows_B: torch.Tensor, candidates_N: torch.Tensor, tau: torch.Tensor, job: _Job
    ) -> tuple[torch.Tensor | None, ...]:
        """Fold every tile into its rows' sums."""
        own_B, total_B, count_B = (tau.new_zeros(len(rows_B)) for _ in range(3))
        others_BK = tau.new_full((len(rows_B), len(job.powers)), NOTHING)
        for rows, columns in job.tiles():
            logits_bn = job.logits(rows_B[rows], candidates_N[columns], tau)
            own_bn, other_bn = job.seen(rows, columns)
            own_B[rows] += (logits_bn * own_bn).sum(dim=1)
            if job.totals:
                total_B[rows] += (logits_bn * other_bn).sum(dim=1)
            count_B[rows] += other_bn.sum(dim=1)
            for place, power in enumerate(job.powers):
                more_b = _log_sum(logits_bn, other_bn, power)
                others_BK[rows, place] = torch.logaddexp(others_BK[rows, place], more_b)
        ctx.job = job
        ctx.save_for_backward(rows_B, candidates_N, tau, others_BK)
        ctx.mark_non_differentiable(count_B)
        return own_B, others_BK, total_B if job.totals else None, count_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        """Compute every tile again; its gradients are added in place to those of rows, candidates and temperature."""
        *inputs, others_BK = ctx.saved_tensors
        job, wanted = ctx.job, [place for place in range(3) if ctx.needs_input_grad[place]]
        found = [torch.zeros_like(value) if place in wanted else None for place, value in enumerate(inputs)]
        for rows, columns in job.tiles():
            parts = [inputs[0][rows].detach(), inputs[1][columns].detach(), inputs[2].detach()]
            for place in wanted:
                parts[place].requires_grad_()
            with torch.enable_grad():
                logits_bn = job.logits(*parts)
            weight_bn = _weights(logits_bn.detach(), job, (rows, columns), others_BK[rows], gradients)
            more = torch.autograd.grad(logits_bn, [parts[place] for place in wanted], weight_bn)
            for place, value in zip(wanted, more, strict=True):
                whole = found[place]
                assert whole is not None
                whole[(rows, columns, ...)[place]] += value
        return (*found, None)


def _weights(
    logits_bn: torch.Tensor, job: _Job, tile: tuple[slice, slice], others_bK: torch.Tensor,
    gradients: tuple[torch.Tensor, ...],
) -> torch.Tensor:  # fmt: skip
    """Gradient at a tile's logits, from those at its rows' sums."""
    own_bn, other_bn = job.seen(*tile)
    own_b, others_bk = (gradient[tile[0]] for gradient in gradients[:2])
    weight_bn = own_b[:, None] * own_bn
    if job.totals:
        weight_bn = weight_bn + gradients[2][tile[0], None] * other_bn
    for place, power in enumerate(job.powers):
        share_bn = (power * logits_bn - others_bK[:, place, None]).masked_fill(~other_bn, NOTHING).exp()
        weight_bn = weight_bn + power * others_bk[:, place, None] * share_bn
    return weight_bn
