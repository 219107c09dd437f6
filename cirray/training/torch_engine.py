"""The plain torch engine: the twin that DeepSpeed's engine is tested against."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn

from cirray.core.errors import ArtifactError, ConfigError, reason_of, unknown_name
from cirray.training.config import LoopConfig
from cirray.training.exchange import Exchange, taken_gradient
from cirray.training.halves import Halves
from cirray.training.optim import Schedule, build_optimizer
from cirray.training.state import frozen_names, trained_weights

STATE = "engine.pt"


class TorchEngine:
    """AdamW in fp32, optional bf16 autocast and weights, gradients averaged over ranks during the backward pass."""

    def __init__(self, model: nn.Module, config: LoopConfig, rank: int = 0, world: int = 1) -> None:
        """Build optimiser and schedule; the model stays on its device.

        Above one worker torch.distributed must be initialised.
        """
        self.module, self.device = model, next(model.parameters()).device
        self._config, self._rank = config, rank
        self._optimizer = build_optimizer(self.module, config)
        self._trained = [item for item in model.parameters() if item.requires_grad]
        self._exchange = Exchange(self._trained) if world > 1 else None
        self._halves = Halves(model) if config.precision == "bf16_weights" else None
        self._updated: list[torch.Tensor] = [*self._trained]
        if self._halves:
            self._updated = [self._halves.updated(item) for item in self._trained]
            for group in self._optimizer.param_groups:
                group["params"] = [self._halves.updated(item) for item in group["params"]]
        if config.compile:
            compile_forward(self.module, config.compile_backend)
        self._schedule, self._steps = Schedule(config), 0

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self._schedule.lr(self._steps)

    def backward(self, loss: torch.Tensor, last: bool = True) -> None:
        """Add the gradients of this rank's loss; with the last, ranks begin to exchange them."""
        if self._exchange:
            self._exchange.watch(last)
        loss.backward()

    def step(self) -> float:
        """Average gradients over ranks, clip, update, advance the schedule; returns the norm before clipping."""
        gradients = self._exchange.means() if self._exchange else [taken_gradient(item) for item in self._trained]
        for updated, gradient in zip(self._updated, gradients, strict=True):
            updated.grad = gradient
        clip = self._config.optimizer.clip
        norm = torch.nn.utils.clip_grad_norm_(self._updated, clip if clip else float("inf"))
        self._schedule.apply(self._optimizer, self._steps)
        self._optimizer.step()
        self._steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        if self._halves:
            self._halves.round()
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write trained weights, optimiser and step (rank 0; all ranks hold the same). Frozen weights stay out."""
        if self._rank == 0:
            with self.full_weights():
                model = trained_weights(self.module)
                state = {"model": model, "optimizer": self._optimizer.state_dict(), "steps": self._steps}
                torch.save(state, folder / STATE)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Raises ArtifactError: no state there, or one of another model."""
        path = folder / STATE
        if not path.is_file():
            raise ArtifactError(f"{str(folder)!r} holds no {STATE}: it is no checkpoint of the torch engine.")
        state = torch.load(path, map_location=self.device, weights_only=True)
        try:
            with self.full_weights():
                missing, unknown = self.module.load_state_dict(state["model"], strict=False)
            if unknown or set(missing) - frozen_names(self.module):
                raise KeyError(f"no or unknown weights: {[*unknown, *missing][:3]}")
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = reason_of(error, 300)
            raise ArtifactError(f"The checkpoint {str(folder)!r} is of another model: {reason}") from None
        self._steps = int(state["steps"])

    @contextmanager
    def full_weights(self) -> Iterator[nn.Module]:
        """The model itself: every rank holds all of it; fp32 weights in place of bf16 ones."""
        with self._halves.whole() if self._halves else nullcontext():
            yield self.module

    def close(self) -> None:
        """Put the fp32 weights into the model."""
        if self._halves:
            self._halves.end()


def compile_forward(model: nn.Module, backend: str) -> None:
    """Let torch.compile trace a model's forward pass at its next call; names and weights do not change.

    Raises ConfigError for a backend that torch does not have.
    """
    known = torch.compiler.list_backends(())
    if backend not in known:
        raise ConfigError(unknown_name("training.compile_backend", backend, known))
    model.compile(backend=backend)
