"""Adapters inside a frozen text encoder, trained by the composing stage: bottlenecks or low-rank updates.

An adapter follows attention and feed-forward in every layer: x + up(GELU(down(x))), 768 -> 64 -> 768, without
normalisation (after arXiv 2504.17990; shapes are ours, docs/PAPERS.md#composing). The last matrix starts at zero, so
that the encoder is unchanged at the start.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from cirray.models.words.sockets import Sockets


class Bottleneck(nn.Module):
    """x + up(GELU(down(x))), which starts as x."""

    def __init__(self, width: int, inner: int) -> None:
        """Random down projection, zero up projection."""
        super().__init__()
        self.down, self.up = nn.Linear(width, inner), nn.Linear(inner, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens_BTW: torch.Tensor) -> torch.Tensor:
        """Same shape."""
        return tokens_BTW + self.up(functional.gelu(self.down(tokens_BTW)))

    def after(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Forward hook: the adapted output of the module before it."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)


class LowRank(nn.Module):
    """A linear layer's update: up(down(x)) of a low rank, zero at the start (LoRA)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        """Random down projection, zero up projection."""
        super().__init__()
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def after(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """Forward hook: the linear layer's output with the update."""
        return output + self.up(self.down(inputs[0]))


class Adapters(nn.ModuleList):
    """All adapters of a text encoder, as forward hooks."""

    def __init__(self, sockets: Sockets, tuning: str, width: int, rank: int) -> None:
        """Make and attach them: `adapter` (of an inner width) or `lora` (of a rank); anything else makes none."""
        super().__init__()
        self._handles: list[RemovableHandle] = []
        for layer in sockets.layers:
            if tuning == "adapter":
                for place in (layer.attention, layer.feed_forward):
                    self._plug(place, Bottleneck(sockets.width, width))
            elif tuning == "lora":
                for linear in layer.linear:
                    self._plug(linear, LowRank(linear, rank))

    def unplug(self) -> None:
        """Detach them from the text encoder."""
        for handle in self._handles:
            handle.remove()

    def _plug(self, place: nn.Module, adapter: Any) -> None:
        self.append(adapter)
        self._handles.append(place.register_forward_hook(adapter.after))
