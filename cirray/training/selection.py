"""Keep the weights of the best measurement, and stop when none better comes."""

from collections.abc import Sequence

import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.training.gather import build_gather
from cirray.training.loop import Callback
from cirray.training.state import Best, LoopState, Row, trained_weights


class KeepBest(Callback):
    """Keeps a copy of the trained weights whenever the mean of some figures of the history is better than before.

    It comes after the callback that adds these figures to rank 0's rows. The copy is part of every checkpoint, so that
    a resumed run equals an unbroken one; `put_best` puts it into the saved model.
    """

    def __init__(self, names: Sequence[str], every: int, patience: int | None = None) -> None:
        """Take the figures whose mean is compared, larger is better; the first of equal ones stays.

        The last step is measured too. After `patience` measurements in a row without a better one training stops; None:
        never.
        """
        self._names, self._every, self._patience = tuple(names), every, patience

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """Compare after a measurement; the same on every rank.

        Raises ConfigError for a figure that the row does not have.
        """
        if row is None or not (state.finished or state.step % self._every == 0):
            return
        own = mean_of(row, self._names) if state.rank == 0 else 0.0
        value = float(build_gather(state.world).total(torch.tensor(own, dtype=torch.float64, device=_device(state))))
        if state.best is None or value > state.best.value:
            state.best = Best(state.step, value, 0, trained_copy(state))
            return
        state.best.misses += 1
        state.stopped = state.stopped or (self._patience is not None and state.best.misses >= self._patience)


def mean_of(row: Row, names: Sequence[str]) -> float:
    """Mean of some figures of a row. Raises ConfigError: for a figure that it does not have."""
    absent = [name for name in names if name not in row]
    if absent:
        raise ConfigError(
            f"The weights cannot be chosen by {absent[0]!r}: step {row['step']:.0f} measured {', '.join(row)}. Name "
            "one of these in validation.keep."
        )
    return sum(row[name] for name in names) / len(names)


def best_row(history: Sequence[Row], names: Sequence[str]) -> Row:
    """The row whose weights `KeepBest` keeps: the first of the best."""
    measured = [row for row in history if all(name in row for name in names)]
    return max(measured, key=lambda row: mean_of(row, names))


def trained_copy(state: LoopState) -> dict[str, torch.Tensor]:
    """Trained weights and buffers on the CPU of rank 0, nothing elsewhere; every rank calls it."""
    with state.engine.full_weights() as model:
        if state.rank:
            return {}
        return {name: value.detach().cpu().clone() for name, value in trained_weights(model).items()}


def put_best(state: LoopState, model: nn.Module) -> None:
    """Put the kept weights, if any, into the whole model, on rank 0 after the last step."""
    if state.best is not None and state.rank == 0:
        model.load_state_dict(state.best.weights, strict=False)


def _device(state: LoopState) -> torch.device:
    """Device for collectives; the CPU for a single process."""
    return state.engine.device if state.world > 1 else torch.device("cpu")
