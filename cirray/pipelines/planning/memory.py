"""Bytes of a run on one GPU: weights, gradients and optimiser by ZeRO stage, caches of decoding, features on disk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from cirray.generators.config import DecodingConfig
from cirray.training.config import LoopConfig

_MASTER = _MOMENTS = 4
_BUCKETS = 4 * 50_000_000
"""DeepSpeed's reduce bucket as `DeepSpeedEngine` sizes it, in fp32."""
_NPY_HEADER = 128
LOGIT_COPIES = 4
"""Number of [rows x beams, vocabulary] fp32 tables in a decoding step: logits, penalised, log-probabilities, sums."""


@dataclass(frozen=True)
class Weights:
    """Numbers of trained and frozen weights, bytes of both, and how many tensors are trained."""

    trained: int
    frozen: int
    trained_bytes: int
    frozen_bytes: int
    tensors: int


@dataclass(frozen=True)
class States:
    """Bytes of one GPU, and of its host's memory where the optimiser is offloaded."""

    weights: int
    gradients: int
    optimizer: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the GPU."""
        return self.weights + self.gradients + self.optimizer


def count_weights(module: nn.Module) -> Weights:
    """Count a module's parameters; shared ones once."""
    trained = [item for item in module.parameters() if item.requires_grad]
    frozen = [item for item in module.parameters() if not item.requires_grad]
    return Weights(
        sum(item.numel() for item in trained), sum(item.numel() for item in frozen),
        sum(item.numel() * item.element_size() for item in trained),
        sum(item.numel() * item.element_size() for item in frozen), len(trained),
    )  # fmt: skip


def training_states(weights: Weights, config: LoopConfig, world: int) -> States:
    """Memory of an engine between and during steps (Rajbhandari et al., "ZeRO", 2020, figure 1, for fp32 weights).

    torch: weights, gradients, AdamW's two moments and a counter of four bytes a tensor, all whole on every GPU; with
    weights in bf16 their fp32 copies too, and gradients that are fp32 when the optimiser gets them.
    DeepSpeed shares moments and an fp32 copy of the weights from stage 1, gradients from stage 2, weights from stage 3.
    """
    moments = 2 * _MOMENTS * weights.trained + 4 * weights.tensors
    whole = weights.trained_bytes + weights.frozen_bytes
    if config.engine != "deepspeed" or config.zero_stage == 0:
        copies = _MASTER * weights.trained if config.precision == "bf16_weights" else 0
        return States(whole, max(copies, weights.trained_bytes), moments + copies)
    stage, share = config.zero_stage, max(world, 1)
    kept = whole if stage < 3 else -(-whole // share)
    gradients = weights.trained_bytes if stage == 1 else -(-weights.trained_bytes // share) + _BUCKETS
    own = -(-(moments + _MASTER * weights.trained) // share)
    offloaded = _offloaded(config.deepspeed, "offload_optimizer")
    away = -(-whole // share) if stage == 3 and _offloaded(config.deepspeed, "offload_param") else 0
    return States(kept - away, gradients, 0 if offloaded else own, (own if offloaded else 0) + away)


def cache_bytes(settings: Any, rows: int, prefix: int, written: int, element: int) -> int:
    """Bytes of a language model's key-value cache.

    Args:
        settings: configuration of the language model.
        rows: rows times beams.
        prefix: tokens read before the first one is written.
        written: tokens that have been written *and* read again.
        element: bytes of one number.
    """
    layers = int(settings.num_hidden_layers)
    heads = int(settings.num_attention_heads)
    shared = int(getattr(settings, "num_key_value_heads", None) or heads)
    width = int(getattr(settings, "head_dim", None) or getattr(settings, "d_kv", None) or settings.hidden_size // heads)
    if settings.is_encoder_decoder:
        layers = int(getattr(settings, "num_decoder_layers", None) or layers)
        # cross-attention keeps the prompt; the decoder starts from one token
        return 2 * layers * shared * width * rows * (prefix + 1 + written) * element
    return 2 * layers * shared * width * rows * (prefix + written) * element


def logit_bytes(vocabulary: int, decoding: DecodingConfig) -> int:
    """Bytes of a decoding step's tables over the vocabulary."""
    return LOGIT_COPIES * 4 * vocabulary * decoding.batch * decoding.beams


def feature_bytes(images: int, tokens: int, width: int, shard_rows: int) -> int:
    """Bytes of a features artifact's vectors on disk: fp16, and a header for every shard."""
    return images * tokens * width * 2 + -(-images // shard_rows) * _NPY_HEADER


def _offloaded(settings: Mapping[str, Any], name: str) -> bool:
    device = dict(dict(settings.get("zero_optimization", {})).get(name, {})).get("device", "none")
    return device not in ("none", None)
