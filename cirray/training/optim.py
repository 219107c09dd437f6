"""AdamW and its schedules, the same for every engine."""

import math
from typing import Any

import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.training.config import LoopConfig, OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Two groups: matrices, which decay; vectors, scalars and norms (fewer than two dimensions), if `decay="all"`.

    Raises ConfigError when every weight is frozen.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(
            "Every weight of this model is frozen, so there is nothing to train. Of a dual encoder train the texts' "
            "side (encoder.settings.train_text=true) or a head with weights (encoder.settings.fusion=combiner)."
        )
    other = config.weight_decay if config.decay == "all" else 0.0
    return [
        {"params": [item for item in trained if item.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [item for item in trained if item.ndim < 2], "weight_decay": other},
    ]


def build_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, fused if `optimizer.fused` and the devices allow it.

    Raises ConfigError when a fused step is asked for on a device without one.
    """
    settings = config.optimizer
    groups = parameter_groups(model, settings)
    fused = _fused(model, config)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused or None)


def _fused(model: nn.Module, config: LoopConfig) -> bool:
    wanted = config.optimizer.fused
    trained = [item for item in model.parameters() if item.requires_grad]
    devices = {item.device.type for item in trained}
    if wanted == "auto":
        return config.engine == "torch" and devices == {"cuda"} and all(item.is_floating_point() for item in trained)
    if wanted and not devices <= {"cuda", "cpu", "xpu", "mps"}:
        raise ConfigError(
            f"optimizer.fused=true has no kernel for weights on {', '.join(sorted(devices))}; use auto or false."
        )
    return bool(wanted)


class Schedule:
    """Learning rate and moment decays as a pure function of the step (0 = first step), the same for every engine.

    one_cycle follows torch's `OneCycleLR` with cosine annealing over `steps * schedule_stretch` steps, and cycles beta1
    if `cycled_beta1` is set.
    """

    def __init__(self, config: LoopConfig) -> None:
        """Compute the phases of a run."""
        self._settings = settings = config.optimizer
        self._total = max(int(round(config.steps * settings.schedule_stretch)), 1)
        self._rise = settings.warmup * self._total

    def factor(self, step: int) -> float:
        """Learning rate over its peak."""
        settings, total, rise = self._settings, self._total, self._rise
        if settings.schedule == "one_cycle":
            start = 1 / settings.start_divisor
            return self._cycle(step, start, 1.0, start / settings.final_divisor)
        if settings.schedule == "cosine":
            return _warm(step, rise) * 0.5 * (1 + math.cos(math.pi * _progress(step, rise, total)))
        if settings.schedule == "step":
            return _warm(step, rise) * (0.1 if 2 * step >= total else 1.0)
        return _warm(step, rise)

    def lr(self, step: int) -> float:
        """Learning rate."""
        return self._settings.lr * self.factor(step)

    def apply(self, optimizer: Any, step: int) -> None:
        """Set every group's rate, and decays if they are cycled, for the next step; the optimiser is anything with
        `param_groups`.
        """
        first, second = self._settings.betas
        if self._settings.cycled_beta1 is not None:
            slow, peak = self._settings.cycled_beta1
            first = self._cycle(step, slow, peak, slow)
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = self.lr(step), (first, second)

    def _cycle(self, step: int, start: float, peak: float, end: float) -> float:
        top = max(self._rise - 1, 0)
        if step < top:
            return _cosine(start, peak, step / top)
        return _cosine(peak, end, min((step - top) / max(self._total - 1 - top, 1), 1.0))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


def _warm(step: int, rise: float) -> float:
    return min((step + 1) / rise, 1.0) if rise >= 1 else 1.0


def _progress(step: int, rise: float, total: int) -> float:
    return min(max(step - rise, 0) / max(total - rise, 1), 1.0)
