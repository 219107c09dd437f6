"""Batches of tensors that move to a device as a whole."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Self

import torch


class Movable:
    """Base of frozen dataclasses whose fields are tensors, other batches, mappings of them, or plain values."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        own: Any = self
        return type(self)(**{item.name: _moved(getattr(self, item.name), device) for item in fields(own)})


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    return value.to(device) if isinstance(value, Movable | torch.Tensor) else value
