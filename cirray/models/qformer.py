"""transformers' BLIP-2 Q-Former with text embeddings and learned queries, and the passes of CIR methods.

One module for every pass (Li et al. 2023, section 3; docs/PAPERS.md#q-former-passes):
image pass: [queries, text]; patches -> queries. With an image the queries take the query feed-forward and cross-attend.
text pass (`query_length=0`): every token, prototypes included, takes the *text* feed-forward, without cross-attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from cirray.models.batch import TextBatch
from cirray.models.config import QFormerConfig
from cirray.models.quiet import quiet


@dataclass(frozen=True)
class ImagePass:
    """Outputs of an image pass: `queries_BQD`, and `text_BTD` when a text went in (else None)."""

    queries_BQD: torch.Tensor
    text_BTD: torch.Tensor | None


def huggingface_config(config: QFormerConfig, patch_width: int, vocabulary_size: int) -> Blip2QFormerConfig:
    """`config` as a transformers configuration."""
    settings = Blip2QFormerConfig(
        vocab_size=max(vocabulary_size, 1), hidden_size=config.width, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=config.intermediate, hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout, max_position_embeddings=config.positions,
        initializer_range=config.initializer_range, cross_attention_frequency=config.cross_attention_frequency,
        encoder_hidden_size=patch_width, use_qformer_text_input=vocabulary_size > 0, pad_token_id=0,
    )  # fmt: skip
    settings._attn_implementation = config.attention
    return settings


def _of_the_first(attention: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Before the last layer: the first `read` tokens attend to all; what nobody reads of the others is not computed."""
    hidden_BLD, mask_B1LL, read = named["hidden_states"], named["attention_mask"], named.pop("read", None)
    if read is None:
        return given, named
    mask_B1RL = None if mask_B1LL is None else mask_B1LL[:, :, :read]
    seen = {"encoder_hidden_states": hidden_BLD, "encoder_attention_mask": mask_B1RL}
    return given, {**named, "hidden_states": hidden_BLD[:, :read], "attention_mask": None, **seen}


class QueryingTransformer(nn.Module):
    """A Q-Former with learned queries, text embeddings and the trainable LayerNorm on the frozen patches.

    Attributes:
        width: width of all outputs; queries: number of learned queries; patch_width: width of the patches.
        vision_norm: LayerNorm on patches (LAVIS' `ln_vision`, trained although the tower is frozen). transformers'
            vision model ends in a LayerNorm of its own, without an affine part here.
    """

    def __init__(self, config: QFormerConfig, patch_width: int, vocabulary_size: int = 0) -> None:
        """Build with random weights from the global torch generator; with a vocabulary of 0 without any text side."""
        super().__init__()
        self.width, self.queries, self.patch_width = config.width, config.queries, patch_width
        self.vocabulary_size = vocabulary_size
        settings = huggingface_config(config, patch_width, vocabulary_size)
        self.vision_norm = nn.LayerNorm(patch_width)
        self.query_tokens = nn.Parameter(torch.empty(1, config.queries, config.width))
        nn.init.normal_(self.query_tokens, std=config.initializer_range)
        self.qformer = Blip2QFormerModel(settings)
        last: Any = self.qformer.encoder.layer[-1]
        last.attention.register_forward_pre_hook(_of_the_first, with_kwargs=True)
        self.embeddings = self._text_embeddings(settings) if vocabulary_size else None

    def enable_checkpointing(self) -> None:
        """Recompute layers in the backward pass to save memory."""
        enable = getattr(self.qformer, "activation_checkpointing_enable", self.qformer.gradient_checkpointing_enable)
        with quiet():  # it looks for word embeddings, which frozen models need for their gradients
            enable({"use_reentrant": False})

    def embed_text(self, text: TextBatch) -> torch.Tensor:
        """Word plus position embeddings, before the embedding LayerNorm: `[B, T, D]`."""
        return self._embeddings()(input_ids=text.ids_BT)

    def embed_words(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """Word embeddings without positions: `[B, T, D]`."""
        return self._embeddings().word_embeddings(ids_BT)

    def add_positions(self, tokens_BLD: torch.Tensor) -> torch.Tensor:
        """Add position embeddings 0..L-1 to tokens of any origin."""
        return tokens_BLD + self._embeddings().position_embeddings.weight[: tokens_BLD.shape[1]]

    def image(self, patches_BPD: torch.Tensor, text: TextBatch | None = None) -> torch.Tensor:
        """Query outputs of the image pass, `[B, Q, D]` (see `image_and_text`)."""
        return self._image(patches_BPD, text, self.queries)

    def image_and_text(self, patches_BPD: torch.Tensor, text: TextBatch | None = None) -> ImagePass:
        """Queries (and text) attend to each other; queries attend to all patches, of one image or of several
        concatenated along P (symmetric in them).
        """
        output_BLD, count = self._image(patches_BPD, text), self.queries
        return ImagePass(output_BLD[:, :count], output_BLD[:, count:] if text is not None else None)

    def text_only(
        self, tokens_BLD: torch.Tensor, mask_BL: torch.Tensor | None = None, read: int | None = None
    ) -> torch.Tensor:
        """Text pass over tokens that still lack the embedding LayerNorm: `[B, L, D]` -> `[B, L, D]`. The mask is 1 for
        tokens that may be attended; None: all. With `read` only the first so many tokens come back.
        """
        return self.qformer(
            query_embeds=tokens_BLD, query_length=0, attention_mask=mask_BL, read=read
        ).last_hidden_state

    def _image(self, patches_BPD: torch.Tensor, text: TextBatch | None, read: int | None = None) -> torch.Tensor:
        """The image pass: queries, then text tokens; with `read` only the first so many.

        Without a text the queries are one row until they see the patches, as they are the same for all.
        """
        tokens_BLD, mask_BL = self.query_tokens[:], None
        if text is not None:
            tokens_BLD = torch.cat([tokens_BLD.expand(len(text), -1, -1), self.embed_text(text)], dim=1)
            mask_BL = torch.cat([text.mask_BT.new_ones(len(text), self.queries), text.mask_BT], dim=1)
        return self.qformer(
            query_embeds=tokens_BLD, query_length=self.queries, attention_mask=mask_BL, read=read,
            encoder_hidden_states=self.vision_norm(patches_BPD.to(self.vision_norm.weight.dtype)),
        ).last_hidden_state  # fmt: skip

    def _embeddings(self) -> Blip2TextEmbeddings:
        if self.embeddings is None:
            raise ValueError("this Q-Former was built without a vocabulary (vocabulary_size=0), so it takes no text")
        return self.embeddings

    @staticmethod
    def _text_embeddings(settings: Blip2QFormerConfig) -> Blip2TextEmbeddings:
        embeddings = Blip2TextEmbeddings(settings)
        for table in (embeddings.word_embeddings, embeddings.position_embeddings):
            nn.init.normal_(table.weight, std=settings.initializer_range)
        return embeddings
