"""Modules with a source's sizes but without weights, for planning; build them under `weightless`.

Sizes come from a folder's configuration or from the table of published ones, so that nothing need be downloaded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2VisionConfig,
    Blip2VisionModel,
    CLIPConfig,
    CLIPVisionModelWithProjection,
    pytorch_utils,
)
from transformers.initialization import no_init_weights

from cirray.core.environ import temporarily
from cirray.core.errors import ArtifactError, ConfigError, reason_of
from cirray.core.storage import local_path
from cirray.data.config import TransformConfig
from cirray.models.config import DualEncoderConfig, QFormerConfig
from cirray.models.dual import DualEncoderRetriever, text_settings
from cirray.models.published import BERT_WORDS, published
from cirray.models.sources.blip2 import stated_sizes
from cirray.models.sources.clip_files import read_clip
from cirray.models.sources.files import READ_ERRORS, read_json
from cirray.models.sources.open_clip_files import architecture, is_open_clip
from cirray.models.sources.pieces import MODEL
from cirray.models.sources.pretrained import pretrained
from cirray.models.sources.tokenizers import read_tokenizer
from cirray.models.towers.auto import outline_encoder
from cirray.models.towers.backbones import BACKBONES, backbone_of
from cirray.models.towers.clip_tower import stored_tokens
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.models.towers.hf_clip import HfClipText, HfClipTower
from cirray.models.towers.language import LanguageModel
from cirray.models.towers.places import SHAPES_LANGUAGE, SHAPES_VISION, asset_folder
from cirray.models.towers.preprocessors import PREPROCESSOR
from cirray.models.towers.timm import outline_timm_tower, published_timm

_UNCHECKED = ("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
_WHOLE = ("blip-2", "instructblip")
_ASSETS = {"vision": SHAPES_VISION, "language": SHAPES_LANGUAGE}


@contextmanager
def weightless() -> Iterator[None]:
    """Inside, new tensors have shapes and types but no memory; start weights are not drawn.

    `Module.to`, which peft calls on its adapters and which fails on such parameters, does nothing. As under
    torch.compile, transformers keeps no tensors for its next call (DINOv3's places of patches) and checks no values.
    """
    moved = nn.Module.to
    nn.Module.to = lambda module, *places, **options: module  # type: ignore[assignment, method-assign]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights(), _as_compiled():
            yield
    finally:
        nn.Module.to = moved  # type: ignore[method-assign]


@contextmanager
def _as_compiled() -> Iterator[None]:
    with patch.object(pytorch_utils, "is_torchdynamo_compiling", lambda: True), temporarily(*_UNCHECKED):
        yield


class Words:
    """A tokenizer for planning: a number of tokens in all, and one for each word of a text."""

    pad_token_id, bos_token_id, eos_token_id, cls_token_id, sep_token_id = 0, 1, 2, 3, 4

    def __init__(self, count: int) -> None:
        """Remember the number of tokens."""
        self._count = count

    def __len__(self) -> int:
        """Size of the vocabulary."""
        return self._count

    def __call__(self, texts: str | Sequence[str], **options: Any) -> dict[str, Any]:
        """Ids of a text, or padded tensors of several."""
        if isinstance(texts, str):
            return {"input_ids": [self.eos_token_id] * len(texts.split())}
        length = min(max(len(text.split()) for text in texts) + 2, int(options.get("max_length", 512)))
        ids_BT = torch.full((len(texts), length), self.eos_token_id)
        return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}


def settings_of(source: str, kind: str = "") -> Any:
    """Configuration of a source: shipped (`asset`, of kind "vision" or "language"), published, or in a folder's
    `config.json`.

    Raises ConfigError when its sizes cannot be known without fetching it.
    """
    folder = asset_folder(_ASSETS[kind]) if source == "asset" else local_path(source)
    if not (folder / "config.json").is_file():
        stated = published(source)
        if stated is not None:
            return stated
        raise ConfigError(
            f"The sizes of {source!r} are not known here: it is no folder with a config.json and none of the published "
            "ones (Salesforce/blip2-itm-vit-g, facebook/dinov2-base, ...). Fetch its config.json into a "
            "folder, and name that."
        )
    try:
        return pretrained(AutoConfig, folder)
    except READ_ERRORS as error:
        raise ArtifactError(f"The config.json of {source!r} cannot be read: {reason_of(error)}") from None


def qformer_sizes(source: str, base: QFormerConfig) -> tuple[QFormerConfig, int, int, int]:
    """Q-Former of a BLIP-2 or InstructBLIP source: sizes, rows of its word table, patch width, width of the vectors.

    Raises ConfigError when the source is of another family.
    """
    settings = settings_of(source)
    if settings.model_type not in _WHOLE:
        raise ConfigError(f"{source!r} is a {settings.model_type!r}; a Q-Former comes from one of {_WHOLE}.")
    inner = settings.qformer_config
    sized = base.model_copy(update=stated_sizes(settings))
    vectors = int(getattr(settings, "image_text_hidden_size", 0)) if settings.model_type == "blip-2" else 0
    return sized, int(inner.vocab_size), int(settings.vision_config.hidden_size), vectors


def outline_tower(source: str) -> VisionTower:
    """A vision tower with a source's sizes. Raises ConfigError: when the sizes cannot be known."""
    if is_open_clip(source):
        return _open_clip_tower(source)
    folder = asset_folder(SHAPES_VISION) if source == "asset" else local_path(source)
    backbone = backbone_of(folder) if folder.is_dir() else None
    if backbone is not None and backbone.outline is not None:
        return backbone.outline(str(folder))
    if published_timm(source) is not None and not folder.is_dir():
        return outline_timm_tower(source)
    settings = settings_of(source, "vision")
    if settings.model_type == "clip" or isinstance(settings, CLIPConfig):
        return _clip_tower(source, settings)
    if settings.model_type not in (*_WHOLE, "blip_2_vision_model"):
        return outline_encoder(settings)
    vision = settings.vision_config if settings.model_type in _WHOLE else settings
    names = set(Blip2VisionConfig().to_dict()) - {"model_type"}
    plain = Blip2VisionConfig(**{name: value for name, value in vision.to_dict().items() if name in names})
    model = Blip2VisionModel._from_config(plain, attn_implementation="sdpa")
    side: Any = plain.image_size
    return VisionTower(model, TransformConfig(size=int(side)))


def outline_language(source: str, dtype: torch.dtype = torch.float32, words: int | None = None) -> LanguageModel:
    """A language model of a source's sizes with a tokenizer that only counts, or the real one of a folder.

    Raises ConfigError when the sizes cannot be known.
    """
    settings = settings_of(source, "language")
    text = settings.text_config if settings.model_type in _WHOLE else settings
    family: Any = AutoModelForSeq2SeqLM if text.is_encoder_decoder else AutoModelForCausalLM
    model = family.from_config(text, dtype=dtype, attn_implementation="sdpa")
    head = getattr(model, "lm_head", None)
    own = head.weight if head is not None and text.model_type == "t5" and published(source) else None
    model.tie_weights()  # as weight initialisation would have done
    if own is not None:
        # Flan-T5's files hold a head of its own, which transformers then keeps, though its configuration ties every T5.
        model.lm_head.weight = own
    return LanguageModel(model.eval(), _tokenizer(source, words or int(text.vocab_size)), source)


def outline_dual(config: DualEncoderConfig, patch_width: int, words: int = BERT_WORDS) -> DualEncoderRetriever:
    """A dual encoder of a configuration's sizes.

    Raises ConfigError when the sizes of its source cannot be known, or tokens and texts share no space.
    """
    if is_open_clip(config.source):
        part = BACKBONES.get("open_clip").build_text(_open_clip_settings(config.source), Path("."))
        return DualEncoderRetriever(config, part, "open_clip", patch_width)
    stub: Any = Words(words)
    settings: Any = text_settings(config, stub)
    if config.source:
        inner = settings_of(config.source).text_config
        stub, settings = Words(int(inner.vocab_size)), inner.to_dict()
    return DualEncoderRetriever(config, HfClipText.build(settings, stub), "hf_clip", patch_width)


def _tokenizer(source: str, words: int) -> Any:
    folder = asset_folder(SHAPES_LANGUAGE) if source == "asset" else local_path(source)
    if any((folder / name).is_file() for name in ("tokenizer_config.json", MODEL)):
        return read_tokenizer(folder)
    return Words(words)


def _clip_tower(source: str, settings: Any) -> VisionTower:
    saved = local_path(source) / PREPROCESSOR
    stored = read_json(saved) if saved.is_file() else {}
    vision = settings.vision_config
    model = CLIPVisionModelWithProjection(vision)
    return HfClipTower(model, TransformConfig(size=int(vision.image_size)), stored_tokens(stored))


def _open_clip_settings(source: str) -> dict[str, Any]:
    if local_path(source).is_file():
        return read_clip(local_path(source))[0]
    settings = architecture(source)
    if settings is None:
        raise ConfigError(f"{source!r} names no architecture of open_clip; see open_clip.list_models().")
    return settings


def _open_clip_tower(source: str) -> VisionTower:
    from cirray.models.towers.open_clip import OpenClipTower, VisualPart, build_model

    settings = _open_clip_settings(source)
    part = VisualPart(build_model(settings).visual, settings)
    size = part.visual.image_size
    side = int(size[0] if isinstance(size, tuple | list) else size)
    return OpenClipTower(part.eval(), TransformConfig(size=side))
