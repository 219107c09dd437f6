"""Means of gradients over ranks, exchanged while the backward pass still works on the layers before.

Weights are put into buckets from the model's end to its start, the order in which a backward pass reaches them (Li et
al., "PyTorch Distributed", VLDB 2020). A bucket travels as soon as all of its gradients are there and the one before it
has left, so every rank sends the same buckets in the same order, over a process group of their own: the losses' own
collectives run on the default one.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 25 * 2**20


class Exchange:
    """Sums up the ranks' gradients in fp32, whatever the weights' precision."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        """Watch the gradients of these weights; every rank calls it, with torch.distributed initialised."""
        self._weights, self._buckets = weights, _buckets(weights, BUCKET_BYTES)
        self._bucket_of = {id(weight): number for number, bucket in enumerate(self._buckets) for weight in bucket}
        self._group: Any = dist.new_group()
        self._last = False
        self._sent: list[tuple[torch.Tensor, dist.Work]] = []
        self._missing: list[set[int]] = []
        for weight in weights:
            weight.register_post_accumulate_grad_hook(self._arrived)

    def watch(self, last: bool) -> None:
        """Before a backward pass; `last`: gradients that arrive in it are whole, and may travel."""
        self._last = last
        self._missing = [{id(weight) for weight in bucket} for bucket in self._buckets]

    def means(self) -> list[torch.Tensor]:
        """Mean gradients over ranks in fp32, one a weight, which holds none then; zero where no loss reached it."""
        while len(self._sent) < len(self._buckets):
            self._send()
        found = dict[int, torch.Tensor]()
        for bucket, (flat, work) in zip(self._buckets, self._sent, strict=True):
            work.wait()
            parts = flat.div_(dist.get_world_size()).split([weight.numel() for weight in bucket])
            found |= {id(weight): part.view_as(weight) for weight, part in zip(bucket, parts, strict=True)}
        self._sent = []
        return [found[id(weight)] for weight in self._weights]

    def _arrived(self, weight: torch.Tensor) -> None:
        if not self._last:
            return
        self._missing[self._bucket_of[id(weight)]].discard(id(weight))
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            self._send()

    def _send(self) -> None:
        bucket = self._buckets[len(self._sent)]
        flat = torch.cat([taken_gradient(weight).reshape(-1) for weight in bucket])
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        assert work is not None
        self._sent.append((flat, work))


def taken_gradient(weight: torch.Tensor) -> torch.Tensor:
    """A weight's gradient in fp32, which the weight no longer holds; zeros where no loss reached it."""
    gradient, weight.grad = weight.grad, None
    return torch.zeros_like(weight, dtype=torch.float32) if gradient is None else gradient.float()


def _buckets(weights: Sequence[torch.Tensor], size: int) -> list[list[torch.Tensor]]:
    buckets: list[list[torch.Tensor]] = []
    room = 0
    for weight in reversed(weights):
        room -= 4 * weight.numel()
        if room < 0:
            buckets.append([])
            room = size - 4 * weight.numel()
        buckets[-1].append(weight)
    return buckets
