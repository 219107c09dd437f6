"""The weights that a run trains, which its checkpoints hold."""

import torch
from torch import nn


def frozen_names(model: nn.Module) -> set[str]:
    """Names of the weights that are not trained; the run's start has them."""
    return {name for name, item in model.named_parameters(remove_duplicate=False) if not item.requires_grad}


def trained_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Trained weights and buffers by name."""
    frozen = frozen_names(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}
