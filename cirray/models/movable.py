"""Batches of tensors that move to a device as a whole, and are cut into pieces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Self, TypeVar

import torch


class Movable:
    """Base of frozen dataclasses whose fields are tensors, other batches, mappings of them, or plain values."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on another device."""
        return self.mapped(lambda tensor: tensor.to(device))

    def piece(self, begin: int, end: int, rows: int) -> Self:
        """Rows `begin ... end` of its `rows`; tensors with several entries a row keep theirs, others stay."""

        def cut(tensor: torch.Tensor) -> torch.Tensor:
            each = len(tensor) // rows if tensor.ndim else 0
            return tensor[each * begin : each * end] if each else tensor

        return self.mapped(cut)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors, in the order of `mapped`."""
        found = list[torch.Tensor]()
        self.mapped(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same batch with other tensors, one after another in a fixed order."""
        own: Any = self
        return type(self)(**{item.name: _changed(getattr(self, item.name), change) for item in fields(own)})


def _changed(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, Mapping):
        return {name: _changed(item, change) for name, item in value.items()}
    if isinstance(value, Movable):
        return value.mapped(change)
    return change(value) if isinstance(value, torch.Tensor) else value


MovableT = TypeVar("MovableT", bound=Movable)


@torch.no_grad()
def joined(pieces: Sequence[MovableT]) -> MovableT:
    """The pieces of a batch as one, without graph; what has no rows is the first one's."""
    columns = zip(*(piece.tensors() for piece in pieces), strict=True)
    whole = iter([torch.cat(column) if column[0].ndim else column[0] for column in columns])
    return pieces[0].mapped(lambda tensor: next(whole))
