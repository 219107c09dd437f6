"""Where vectors enter a CLIP text encoder, by hooks on its word table and its layers.

transformers' and open_clip's own forward passes (masks, pooling at the end token) still run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.models.words.prompts import Alphabet

_FILLING: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("filling", default=None)
"""The current thread's slots: positions `[B, T]` and a vector for each `[B, T, W]`."""


@dataclass(frozen=True)
class Layer:
    """Attention and feed-forward of one text layer, and their linear layers that are called as modules."""

    attention: nn.Module
    feed_forward: nn.Module
    linear: tuple[nn.Linear, ...]


@dataclass(frozen=True)
class Sockets:
    """The modules of a text encoder that pseudo-words and adapters hook into."""

    table: nn.Embedding
    layers: tuple[Layer, ...]
    alphabet: Alphabet

    @property
    def width(self) -> int:
        """Width of the word embeddings."""
        return int(self.table.embedding_dim)


def open_sockets(text_encoder: Any) -> Sockets:
    """Find them in a `TextEncoder` of a backbone (CLIP of transformers, or of open_clip), and hook the word table.

    Raises ConfigError for any other text encoder.
    """
    model = text_encoder.model
    if hasattr(model, "text_model") and hasattr(model.text_model, "embeddings"):
        found = _hugging_face(text_encoder)
    elif isinstance(getattr(model, "token_embedding", None), nn.Embedding):
        found = _open_clip(text_encoder)
    else:
        raise ConfigError(
            f"Pseudo-words need CLIP's own text encoder (transformers' or open_clip's); {type(model).__name__} has "
            "none. Name another source."
        )
    found.table.register_forward_hook(_fill)
    return found


@contextmanager
def slots_filled(slot_BT: torch.Tensor, tokens_BNW: torch.Tensor) -> Iterator[None]:
    """Inside, word tables return an image's tokens at the slots: the n-th slot of a row gets token n modulo N."""
    number_BT = (slot_BT.long().cumsum(dim=1) - 1).clamp_min(0) % tokens_BNW.shape[1]
    index_BTW = number_BT[:, :, None].expand(-1, -1, tokens_BNW.shape[2])
    held = _FILLING.set((slot_BT, tokens_BNW.gather(1, index_BTW)))
    try:
        yield
    finally:
        _FILLING.reset(held)


def _fill(module: nn.Module, inputs: Any, words_BTW: torch.Tensor) -> torch.Tensor | None:
    given = _FILLING.get()
    if given is None:
        return None
    slot_BT, vectors_BTW = given
    return torch.where(slot_BT[:, :, None], vectors_BTW.to(words_BTW.dtype), words_BTW)


def _hugging_face(text_encoder: Any) -> Sockets:
    model, tokenizer = text_encoder.model.text_model, text_encoder.tokenizer
    layers = tuple(
        Layer(
            block.self_attn, block.mlp,
            (block.self_attn.q_proj, block.self_attn.v_proj, block.mlp.fc1, block.mlp.fc2),
        )
        for block in model.encoder.layers
    )  # fmt: skip
    framed = tokenizer("a")["input_ids"]

    def words(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    limit = int(model.config.max_position_embeddings)
    alphabet = Alphabet(words, framed[0], framed[-1], int(tokenizer.pad_token_id), limit)
    return Sockets(model.embeddings.token_embedding, layers, alphabet)


def _open_clip(text_encoder: Any) -> Sockets:
    model, tokenizer = text_encoder.model, text_encoder.tokenizer
    layers = tuple(
        Layer(block.attn, block.mlp, tuple(part for part in block.mlp if isinstance(part, nn.Linear)))
        for block in model.transformer.resblocks
    )
    begin, end, limit = int(tokenizer.sot_token_id), int(tokenizer.eot_token_id), int(model.context_length)
    alphabet = Alphabet(lambda text: list(tokenizer.encode(text)), begin, end, 0, limit, fill=True)
    return Sockets(model.token_embedding, layers, alphabet)
