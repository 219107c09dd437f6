"""Weights in bf16 with fp32 copies (Micikevicius et al., "Mixed Precision Training", ICLR 2018, with bf16 for fp16)."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn import functional


class Halves:
    """Fp32 copies of a model's trained weights, which are rounded to bf16 in it.

    Frozen weights stay as they are: others know them by their digests.
    """

    def __init__(self, model: nn.Module) -> None:
        """Round the weights in place."""
        self._model = model
        norms_in_float(model)
        trained = [item for item in model.parameters() if item.requires_grad and item.dtype == torch.float32]
        self._copies = {item: item.detach().clone() for item in trained}
        self.round()

    def updated(self, weight: nn.Parameter) -> torch.Tensor:
        """What the optimiser updates in place of a trained weight."""
        return self._copies.get(weight, weight)

    @torch.no_grad()
    def round(self) -> None:
        """Put the copies into the model."""
        for weight, copy in self._copies.items():
            weight.data = copy.bfloat16()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, the model has the fp32 weights themselves; what is written into them stays."""
        self._put()
        try:
            yield
        finally:
            self.round()

    def end(self) -> None:
        """Leave the model with its fp32 weights, as it was before training."""
        self._put()
        norms_again(self._model)

    def _put(self) -> None:
        for weight, copy in self._copies.items():
            weight.data = copy


def norms_in_float(model: nn.Module) -> None:
    """Let LayerNorms work and answer in fp32 whatever their weights are, as autocast does on a GPU and not on a CPU:
    sums over layers stay in fp32 so.
    """
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.forward = partial(_norm, module)  # type: ignore[method-assign]


def norms_again(model: nn.Module) -> None:
    """Undo `norms_in_float`."""
    for module in model.modules():
        if type(module) is nn.LayerNorm:
            module.__dict__.pop("forward", None)


def _norm(module: nn.LayerNorm, value: torch.Tensor) -> torch.Tensor:
    weight, bias = (None if item is None else item.float() for item in (module.weight, module.bias))
    return functional.layer_norm(value.float(), module.normalized_shape, weight, bias, module.eps)
