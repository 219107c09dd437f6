"""A small CLIP from scratch, of transformers' classes."""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase

from cirray.data.config import TransformConfig
from cirray.models.quiet import quiet
from cirray.models.text import encode_texts
from cirray.models.towers.config import ClipModelConfig
from cirray.models.towers.preprocessors import write_preprocessor

_POSITION_STD, _TOKEN_STD = 0.7, 0.3
"""Start deviation of the position and word tables; with small ones a short pretraining learns no order."""


class SmallClip(nn.Module):
    """`CLIPModel` with its tokenizer and image transform."""

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, transform: TransformConfig) -> None:
        """Take the three parts."""
        super().__init__()
        self.model, self.tokenizer, self.transform = model, tokenizer, transform
        self.mean_C: torch.Tensor
        self.std_C: torch.Tensor
        self.register_buffer("mean_C", torch.tensor(transform.mean) * 255.0, persistent=False)
        self.register_buffer("std_C", torch.tensor(transform.std) * 255.0, persistent=False)

    def look(self, images_BHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Image embeddings `[B, D]` (not normalised) and patch tokens `[B, P, W]` of uint8 images."""
        pixels_BCHW = ((images_BHWC.float() - self.mean_C) / self.std_C).permute(0, 3, 1, 2)
        seen = self.model.vision_model(pixel_values=pixels_BCHW)
        return self.model.visual_projection(seen.pooler_output), seen.last_hidden_state[:, 1:]

    def read(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Caption embeddings `[B, D]`, not normalised."""
        pooled_BW = self.model.text_model(input_ids=ids_BT, attention_mask=mask_BT).pooler_output
        return self.model.text_projection(pooled_BW)

    def spell(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask of captions."""
        limit = self.model.text_model.embeddings.position_embedding.num_embeddings
        text = encode_texts(self.tokenizer, captions, limit)
        return text.ids_BT, text.mask_BT

    def save(self, folder: Path) -> None:
        """Write a CLIP folder in Hugging Face layout: both towers, projections, tokenizer, preprocessor."""
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            self.model.save_pretrained(str(folder))
        self.tokenizer.save_pretrained(str(folder))
        write_preprocessor(folder, self.transform)


def build_clip(config: ClipModelConfig, tokenizer: PreTrainedTokenizerBase, transform: TransformConfig) -> SmallClip:
    """A CLIP with random weights from the global torch generator; captions are read out at the end token."""
    text = {
        "vocab_size": len(tokenizer), "hidden_size": config.text_width, "intermediate_size": 4 * config.text_width,
        "num_hidden_layers": config.text_layers, "num_attention_heads": config.heads,
        "max_position_embeddings": config.positions, "projection_dim": config.embed_dim,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": config.vision_width, "intermediate_size": 4 * config.vision_width,
        "num_hidden_layers": config.vision_layers, "num_attention_heads": config.heads,
        "image_size": config.image_size, "patch_size": config.patch_size, "projection_dim": config.embed_dim,
    }  # fmt: skip
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim))
    nn.init.normal_(model.vision_model.embeddings.position_embedding.weight, std=_POSITION_STD)
    for table in (model.text_model.embeddings.token_embedding, model.text_model.embeddings.position_embedding):
        nn.init.normal_(table.weight, std=_TOKEN_STD)
    return SmallClip(model, tokenizer, transform)
