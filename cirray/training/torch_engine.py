"""The plain torch engine: the twin that DeepSpeed's engine is tested against."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import nn

from cirray.core.errors import ArtifactError, ConfigError, reason_of, unknown_name
from cirray.training.config import LoopConfig
from cirray.training.optim import Schedule, build_optimizer
from cirray.training.state import frozen_names, trained_weights

STATE = "engine.pt"


class TorchEngine:
    """AdamW in fp32, optional bf16 autocast, gradients averaged over ranks in one all-reduce."""

    def __init__(self, model: nn.Module, config: LoopConfig, rank: int = 0, world: int = 1) -> None:
        """Build optimiser and schedule; the model stays on its device.

        Above one worker torch.distributed must be initialised.
        """
        self.module, self.device = model, next(model.parameters()).device
        self._config, self._rank, self._world = config, rank, world
        self._optimizer = build_optimizer(self.module, config)
        if config.compile:
            compile_forward(self.module, config.compile_backend)
        self._schedule, self._steps = Schedule(config), 0

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self._schedule.lr(self._steps)

    def backward(self, loss: torch.Tensor, last: bool = True) -> None:
        """Add the gradients of this rank's loss; `step` averages them over ranks."""
        loss.backward()

    def step(self) -> float:
        """Average gradients over ranks, clip, update, advance the schedule; returns the norm before clipping."""
        parameters = [item for item in self.module.parameters() if item.requires_grad]
        for item in parameters:
            if item.grad is None:
                item.grad = torch.zeros_like(item)
        if self._world > 1:
            _average([item.grad for item in parameters if item.grad is not None], self._world)
        clip = self._config.optimizer.clip
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip else float("inf"))
        self._schedule.apply(self._optimizer, self._steps)
        self._optimizer.step()
        self._steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def save(self, folder: Path) -> None:
        """Write trained weights, optimiser and step (rank 0; all ranks hold the same). Frozen weights stay out."""
        if self._rank == 0:
            state = {
                "model": trained_weights(self.module), "optimizer": self._optimizer.state_dict(),
                "steps": self._steps,
            }  # fmt: skip
            torch.save(state, folder / STATE)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Raises ArtifactError: no state there, or one of another model."""
        path = folder / STATE
        if not path.is_file():
            raise ArtifactError(f"{str(folder)!r} holds no {STATE}: it is no checkpoint of the torch engine.")
        state = torch.load(path, map_location=self.device, weights_only=True)
        try:
            missing, unknown = self.module.load_state_dict(state["model"], strict=False)
            if unknown or set(missing) - frozen_names(self.module):
                raise KeyError(f"no or unknown weights: {[*unknown, *missing][:3]}")
            self._optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:
            reason = reason_of(error, 300)
            raise ArtifactError(f"The checkpoint {str(folder)!r} is of another model: {reason}") from None
        self._steps = int(state["steps"])

    def full_weights(self) -> AbstractContextManager[nn.Module]:
        """The model itself: every rank holds all of it."""
        return nullcontext(self.module)


def compile_forward(model: nn.Module, backend: str) -> None:
    """Let torch.compile trace a model's forward pass at its next call; names and weights do not change.

    Raises ConfigError for a backend that torch does not have.
    """
    known = torch.compiler.list_backends(())
    if backend not in known:
        raise ConfigError(unknown_name("training.compile_backend", backend, known))
    model.compile(backend=backend)


def _average(gradients: list[torch.Tensor], world: int) -> None:
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    flat /= world
    offset = 0
    for gradient in gradients:
        gradient.copy_(flat[offset : offset + gradient.numel()].view_as(gradient))
        offset += gradient.numel()
