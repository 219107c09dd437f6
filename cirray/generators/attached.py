"""How a language model hangs behind soft tokens: which weights learn, which layers are computed again, which logits."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cirray.core.errors import ConfigError
from cirray.core.extras import require
from cirray.generators.config import GeneratorConfig
from cirray.models.towers.language import LanguageModel


@contextmanager
def head_reads(lm: Any, places_N: torch.Tensor) -> Iterator[None]:
    """Inside, the head computes logits of these positions of all rows alone, as one row: `[1, N, V]`.

    The model's own forward pass stays in use, with whatever it does to logits.
    """

    def chosen(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (given[0].flatten(0, 1)[places_N][None], *given[1:])

    hook = lm.get_output_embeddings().register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        hook.remove()


def _recompute_layers(model: nn.Module) -> None:
    """Layers keep their inputs alone and are computed again in the backward pass, in a frozen model too.

    transformers' own switch acts on models in training mode, whose dropout a frozen one must not have. Raises
    ConfigError: for a model that names no such layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} does not say which of its layers can be computed again; set "
            "generator.settings.gradient_checkpointing=false."
        )
    for layer in layers:
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*given, **named)
    return checkpoint(forward, *given, use_reentrant=False, **named)


def tuned(language: LanguageModel, config: GeneratorConfig) -> Any:
    """The language model with exactly the configured weights trainable."""
    model = language.model
    model.requires_grad_(config.tuning == "full")
    if config.gradient_checkpointing:
        _recompute_layers(model)
    if config.tuning != "lora":
        return model
    require("peft", "train", "generator.settings.tuning=lora")
    from peft import LoraConfig as Adapter
    from peft import get_peft_model

    modules = list(config.lora.modules) if config.lora.modules else "all-linear"
    adapter = Adapter(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=modules,
        lora_dropout=config.lora.dropout,
        task_type="SEQ_2_SEQ_LM" if language.encodes else "CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`")  # peft asks by transformers' old name
        return get_peft_model(model, adapter)
