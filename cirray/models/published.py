"""Configurations of published checkpoints, from their model cards and papers, so that nothing need be downloaded."""

import re
from pathlib import Path
from typing import Any

from transformers import (
    Blip2Config,
    CLIPConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ViTConfig,
    InstructBlipConfig,
    LlamaConfig,
    Siglip2VisionConfig,
    SiglipVisionConfig,
    T5Config,
    ViTConfig,
)

BERT_WORDS = 30523
"""Rows of BLIP-2's word table: bert-base-uncased with LAVIS' [DEC]."""
_VITS = {
    "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "so400m": (1152, 27, 16),
    "giant": (1536, 40, 24), "giant-opt": (1536, 40, 16), "s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16),
    "h": (1280, 32, 20), "7b": (4096, 40, 32),
}  # fmt: skip
"""Width, layers and heads of vision transformers, by the part of a name that says the size."""


def _llama(width: int, intermediate: int, layers: int, heads: int, words: int = 32001) -> dict[str, Any]:
    """LLaMA as Vicuna has it, with InstructBLIP's pad token added."""
    settings = LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, max_position_embeddings=2048,
    )  # fmt: skip
    return dict(settings.to_dict())


def _flan_t5(width: int, inner: int, heads: int) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "vocab_size": 32128, "d_model": width, "d_kv": 64, "d_ff": inner, "num_layers": 24, "num_heads": heads,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    }  # fmt: skip
    settings = T5Config(**fields)
    return dict(settings.to_dict())


def _clip(width: int, vision: int, patch: int, layers: int) -> Any:
    """OpenAI's CLIP ViTs: text of `width`, which is the common space's too; heads of 64 everywhere."""
    text = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    image = {
        "hidden_size": vision, "intermediate_size": 4 * vision, "num_attention_heads": vision // 64,
        "num_hidden_layers": layers, "patch_size": patch, "image_size": 224,
    }  # fmt: skip
    both = {"projection_dim": width}
    return CLIPConfig(text_config={**text, **both}, vision_config={**image, **both}, projection_dim=width)


def _instruct(text: dict[str, Any]) -> Any:
    return InstructBlipConfig(qformer_config={"vocab_size": BERT_WORDS}, text_config=text, num_query_tokens=32)


def _sizes(name: str, intermediate: int = 0) -> dict[str, Any]:
    width, layers, heads = _VITS[name]
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": intermediate or 4 * width,
    }  # fmt: skip


def _encoder(name: str) -> Any | None:
    """Configuration of a published image encoder by the last part of its name; None for an unknown one.

    Widths, layers and heads are those of ViT (Dosovitskiy et al. 2020) and of the model cards of DINOv2, DINOv3, SigLIP
    and SigLIP 2.
    """
    fields: dict[str, Any]
    gated: dict[str, Any]
    if found := re.fullmatch(r"dinov2(-with-registers)?-(small|base|large|giant)", name):
        fields = _sizes(found[2]) | {"image_size": 518, "patch_size": 14, "use_swiglu_ffn": found[2] == "giant"}
        del fields["intermediate_size"]
        return Dinov2WithRegistersConfig(num_register_tokens=4, **fields) if found[1] else Dinov2Config(**fields)
    if found := re.fullmatch(r"dinov3-vit(s|b|l|h|7b)16(plus)?-pretrain-\w+", name):
        fields = _sizes(found[1], 8192 if found[1] == "7b" else 0)
        gated = {"use_gated_mlp": True, "hidden_act": "silu"} if found[2] or found[1] == "7b" else {}
        return DINOv3ViTConfig(num_register_tokens=4, patch_size=16, image_size=224, **fields, **gated)
    if found := re.fullmatch(r"siglip2?-(base|large|so400m|giant-opt)-patch(\d+)-(\d+|naflex)", name):
        fields = _sizes(found[1], 4304 if found[1] == "so400m" else 0) | {"patch_size": int(found[2])}
        naflex = found[3] == "naflex"
        return Siglip2VisionConfig(**fields) if naflex else SiglipVisionConfig(image_size=int(found[3]), **fields)
    if found := re.fullmatch(r"vit-(base|large)-patch(16|32)-(224|384)(-in21k)?", name):
        return ViTConfig(patch_size=int(found[2]), image_size=int(found[3]), **_sizes(found[1]))
    return None


def published(name: str) -> Any | None:
    """Configuration of a published checkpoint, from its model card and its paper; None for an unknown name.

    BLIP-2 and InstructBLIP: transformers' defaults are ViT-g and the BERT-base Q-Former (Li et al. 2023, section 3).
    Vicuna and LLaMA 2, 7B and 13B: LLaMA's sizes (Touvron et al. 2023, table 2). Flan-T5 XL and XXL: T5 v1.1's.
    CLIP: Radford et al. 2021, tables 19 and 20. DINOv2, DINOv3, SigLIP, SigLIP 2 and ViT: `_encoder`.
    """
    tables: dict[str, Any] = {
        "Salesforce/blip2-itm-vit-g": lambda: Blip2Config(
            qformer_config={"vocab_size": BERT_WORDS, "use_qformer_text_input": True}, num_query_tokens=32,
            image_text_hidden_size=256,
        ),
        "Salesforce/instructblip-vicuna-7b": lambda: _instruct(_llama(4096, 11008, 32, 32)),
        "Salesforce/instructblip-vicuna-13b": lambda: _instruct(_llama(5120, 13824, 40, 40)),
        "Salesforce/instructblip-flan-t5-xl": lambda: _instruct(_flan_t5(2048, 5120, 32)),
        "Salesforce/instructblip-flan-t5-xxl": lambda: _instruct(_flan_t5(4096, 10240, 64)),
        "openai/clip-vit-large-patch14": lambda: _clip(768, 1024, 14, 24),
        "openai/clip-vit-base-patch32": lambda: _clip(512, 768, 32, 12),
        "meta-llama/Llama-2-7b-hf": lambda: LlamaConfig(**_llama(4096, 11008, 32, 32, 32000)),
        "meta-llama/Llama-2-13b-hf": lambda: LlamaConfig(**_llama(5120, 13824, 40, 40, 32000)),
        "lmsys/vicuna-7b-v1.5": lambda: LlamaConfig(**_llama(4096, 11008, 32, 32, 32000)),
        "lmsys/vicuna-13b-v1.5": lambda: LlamaConfig(**_llama(5120, 13824, 40, 40, 32000)),
    }  # fmt: skip
    # a folder that does not exist yet has the name of what will be in it
    known = name if name in tables else next((item for item in tables if item.endswith("/" + Path(name).name)), "")
    return tables[known]() if known else _encoder(Path(name).name)
