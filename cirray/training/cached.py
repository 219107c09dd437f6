"""Gradient caching: the contrast of a whole batch in the memory of a piece of it (GradCache: Gao et al., "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", arXiv 2101.06983).

Every piece goes through the model once for its vectors, which are kept without their graph. The loss of all vectors
gives the gradient at each. Then every piece goes through the model again, and what is differentiated is the inner
product of its vectors with these gradients: by the chain rule that gives the whole batch's. Dropout draws the same
numbers both times.
"""

from collections.abc import Sequence
from typing import Any

import torch

from cirray.core.seeding import derive_seed
from cirray.losses.output import LossOutput
from cirray.models.batch import Movable, joined
from cirray.training.engine import autocast
from cirray.training.gather import Gather
from cirray.training.prefetch import Ahead
from cirray.training.state import LoopState
from cirray.training.task import Contrasting, Parted

Shares = list[torch.Tensor | None]
"""A piece's part of the gradient at each tensor of its vectors; None: no gradient."""


def cached_gradients(state: LoopState, batch: Parted, gather: Gather) -> LossOutput:
    """The loss of a batch, with its gradients left at the weights; ranks are averaged at the last piece alone."""
    engine, config, task = state.engine, state.config, state.task
    assert isinstance(task, Contrasting)

    def vectors(number: int, piece: Any) -> Movable:
        torch.manual_seed(derive_seed(config.seed, "dropout", state.step, state.rank, number))
        with autocast(engine.device, config):
            return task.vectors(engine.module, piece.to(engine.device))

    with Ahead(batch.pieces()) as pieces:
        # with a graph, dropped at once: without one, attention may choose a kernel that draws other dropout
        found = [_held(vectors(number, piece)) for number, piece in enumerate(pieces)]
    whole = joined(found)
    for tensor, of_piece in zip(whole.tensors(), found[0].tensors(), strict=True):
        tensor.requires_grad_(of_piece.requires_grad)
    rows = [[len(tensor) if tensor.ndim else 0 for tensor in piece.tensors()] for piece in found]
    del found
    with autocast(engine.device, config):
        output = task.loss_of(whole, batch.whole.to(engine.device), gather)
    shares = _shares(output.total, whole, rows)
    with Ahead(batch.pieces()) as pieces:
        for number, piece in enumerate(pieces):
            engine.backward(_product(vectors(number, piece), shares[number]), last=number == len(rows) - 1)
    return LossOutput(output.total.detach(), output.terms)


def _held(vectors: Movable) -> Movable:
    """Vectors without their graph, which still say what has a gradient."""
    return vectors.mapped(lambda tensor: tensor.detach().requires_grad_(tensor.requires_grad))


def _shares(total: torch.Tensor, whole: Movable, rows: Sequence[Sequence[int]]) -> list[Shares]:
    """The gradient of the loss at the vectors, cut into the pieces' parts; one without rows is spread evenly."""
    tensors = whole.tensors()
    learned = [tensor for tensor in tensors if tensor.requires_grad]
    found = iter(torch.autograd.grad(total, learned, allow_unused=True))
    columns: list[Sequence[torch.Tensor | None]] = []
    for tensor, counts in zip(tensors, zip(*rows, strict=True), strict=True):
        gradient = next(found) if tensor.requires_grad else None
        if gradient is None:
            columns.append([None] * len(rows))
        else:
            columns.append(gradient.split(list(counts)) if tensor.ndim else [gradient / len(rows)] * len(rows))
    return [list(piece) for piece in zip(*columns, strict=True)]


def _product(vectors: Movable, shares: Shares) -> torch.Tensor:
    pairs = zip(vectors.tensors(), shares, strict=True)
    return torch.stack([(tensor * share).sum() for tensor, share in pairs if share is not None]).sum()
