"""The collective of the losses: rows of all ranks, with gradient, so that W ranks equal one.

With `backward` summing over ranks and the engine averaging gradients, mean-over-ranks of the ranks' losses has exactly
the gradient of the same loss on one process that holds all rows.
"""

from typing import Any, Protocol

import torch
import torch.distributed as dist


class Gather(Protocol):
    """Access to the other ranks' rows. Every rank calls with equal shapes, in the same order."""

    @property
    def rank(self) -> int:
        """Index of the calling worker."""

    @property
    def world(self) -> int:
        """Number of workers."""

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks, rank 0 first: `[B, ...]` -> `[world * B, ...]`; differentiable for floats."""

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum of a tensor over ranks, without gradient."""

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum of a tensor over ranks, without gradient."""


class NoGather:
    """One process: nothing to gather."""

    rank = 0
    world = 1

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows themselves."""
        return tensor

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself, detached."""
        return value.detach()

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """The value itself, detached."""
        return value.detach()


class DistributedGather:
    """Gather over torch.distributed's default group (gloo or NCCL)."""

    def __init__(self) -> None:
        """Read rank and world size of the initialised default group."""
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks, rank 0 first; differentiable for floats."""
        if self.world == 1:
            return tensor
        if tensor.is_floating_point() and tensor.requires_grad:
            return _GatherRows.apply(tensor)
        return _all_gather(tensor.detach())

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, without gradient."""
        summed = value.detach().clone()
        dist.all_reduce(summed)
        return summed

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """Elementwise maximum over ranks, without gradient."""
        top = value.detach().clone()
        dist.all_reduce(top, op=dist.ReduceOp.MAX)
        return top


def build_gather(world: int) -> Gather:
    """The gather for a world size; above 1 torch.distributed must be initialised."""
    return DistributedGather() if world > 1 else NoGather()


class _GatherRows(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter: every rank gets its own rows' gradients, summed over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks, in rank order."""
        ctx.rows = tensor.shape[0]
        return _all_gather(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        """The own rows' part of the gradient, summed over ranks."""
        parts = list(gradients[0].contiguous().split(ctx.rows))
        own = torch.empty_like(parts[0])
        dist.reduce_scatter(own, parts)
        return own


def _all_gather(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    whole = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
    dist.all_gather(list(whole.split(len(tensor))), tensor)
    return whole
