"""AdamW with the schedules of the method, built the same way for every engine."""

import math
from collections.abc import Callable

import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.training.config import LoopConfig, OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, object]]:
    """Two groups: matrices with weight decay; vectors, scalars and norms (fewer than two dimensions) without."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [item for item in trained if item.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [item for item in trained if item.ndim < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, in one kernel where `optimizer.fused` and the devices allow it.

    Raises:
        ConfigError: when a fused step is asked for and weights lie where torch has none.
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


def lr_factor(config: LoopConfig) -> Callable[[int], float]:
    """Learning rate over its peak as a pure function of the step (0 = first step).

    one_cycle follows torch's `OneCycleLR` with cosine annealing over `steps * schedule_stretch` steps.
    """
    settings = config.optimizer
    total = max(int(round(config.steps * settings.schedule_stretch)), 1)
    rise = settings.warmup * total
    if settings.schedule == "one_cycle":
        start, end = 1 / settings.start_divisor, 1 / settings.start_divisor / settings.final_divisor
        return lambda step: _one_cycle(step, total, rise, start, end)
    if settings.schedule == "cosine":
        return lambda step: _warm(step, rise) * 0.5 * (1 + math.cos(math.pi * _progress(step, rise, total)))
    if settings.schedule == "step":
        return lambda step: _warm(step, rise) * (0.1 if 2 * step >= total else 1.0)
    return lambda step: _warm(step, rise)


def build_schedule(optimizer: torch.optim.Optimizer, config: LoopConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule as torch's `LambdaLR`, one step per optimiser step."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config))


def _one_cycle(step: int, total: int, rise: float, start: float, end: float) -> float:
    if step < rise - 1:
        return _cosine(start, 1.0, step / (rise - 1))
    return _cosine(1.0, end, min((step - max(rise - 1, 0)) / max(total - 1 - max(rise - 1, 0), 1), 1.0))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


def _warm(step: int, rise: float) -> float:
    return min((step + 1) / rise, 1.0) if rise >= 1 else 1.0


def _progress(step: int, rise: float, total: int) -> float:
    return min(max(step - rise, 0) / max(total - rise, 1), 1.0)
