"""open_clip: any of its architectures, from the sources of `cirray.models.sources.open_clip_files`."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from cirray.core.contents import spoken
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.config import TransformConfig
from cirray.models.batch import TextBatch
from cirray.models.sources.files import READ_ERRORS, check_fit, check_floats, read_json, unreadable
from cirray.models.sources.open_clip_files import CONFIG, WEIGHTS, OpenClipFiles, is_open_clip, read_open_clip
from cirray.models.sources.state_dicts import stripped
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.clip_tower import ClipTower, stored_tokens
from cirray.models.towers.preprocessors import PREPROCESSOR, checked_transform, read_transform

NAME = "open_clip"


class VisualPart(nn.Module):
    """open_clip's visual module with its configuration."""

    def __init__(self, visual: Any, settings: Mapping[str, Any]) -> None:
        """Keep both."""
        super().__init__()
        self.visual, self.settings = visual, dict(settings)


class OpenClipTower(ClipTower):
    """The visual part of an open_clip model, frozen."""

    def _sizes(self) -> tuple[int, int, int]:
        size = self.model.visual.image_size
        side = int(size[0] if isinstance(size, tuple | list) else size)
        width = int(self.model.settings["embed_dim"])
        if self.tokens == "unprojected":
            width = max(width, int(self.model.settings["vision_cfg"]["width"]))
        return width, 1 + (self._patches() if self.tokens != "embedding" else 0), side

    def _patches(self) -> int:
        from open_clip.transformer import VisionTransformer

        visual = self.model.visual
        if not isinstance(visual, VisionTransformer) or visual.pool_type != "tok" or visual.attn_pool is not None:
            raise ConfigError(
                f"clip_tokens={self.tokens} needs a plain ViT whose class token is the embedding; this "
                f"open_clip tower is a {type(visual).__name__}. Use clip_tokens=embedding."
            )
        return int(visual.grid_size[0] * visual.grid_size[1])

    def _embedding(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model.visual(pixels_BCHW)

    def _all_tokens(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        visual = self.model.visual
        visual.output_tokens = True
        try:
            embedding_BD, patches_BPW = visual(pixels_BCHW)
        finally:
            visual.output_tokens = False
        return torch.cat([embedding_BD[:, None], patches_BPW @ visual.proj], dim=1)

    def _unprojected(self, pixels_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        kept: list[torch.Tensor] = []
        handle = self.model.visual.transformer.register_forward_hook(lambda module, given, tokens: kept.append(tokens))
        try:
            embedding_BD = self.model.visual(pixels_BCHW)
        finally:
            handle.remove()
        return embedding_BD, kept[0][:, 1:]

    def _description(self) -> dict[str, Any]:
        return {"tokens": self.tokens, **spoken(self.model.settings)}

    def _save_model(self, folder: Path) -> None:
        write_folder(folder, self.model.settings, self.model.state_dict())


class OpenClipText(nn.Module):
    """The text part of an open_clip model with its tokenizer."""

    def __init__(self, model: Any, settings: Mapping[str, Any], words: Path | None = None) -> None:
        """Drop the visual part; `words` is a folder that may hold the tokenizer's files."""
        super().__init__()
        model.visual = None
        self.model, self.settings = model, dict(settings)
        self.embed_dim = int(settings["embed_dim"])
        self.tokenizer = _tokenizer(settings, words)

    def forward(self, text: TextBatch) -> torch.Tensor:
        """Vectors `[B, D]`, not normalised."""
        return self.model.encode_text(text.ids_BT)

    def tokenize(self, texts: Sequence[str], length: int) -> TextBatch:
        """Token ids, always of the model's full context. Raises DataError for an empty list or a blank text."""
        blank = next((text for text in texts if not text.strip()), None)
        if not texts or blank is not None:
            raise DataError("There is no text to encode. Give a modification text of one word or more.")
        ids_BT = self.tokenizer(list(texts)).long()
        return TextBatch(ids_BT, (ids_BT != 0).long())

    def description(self) -> dict[str, Any]:
        """open_clip's own configuration of the model."""
        return self.settings

    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        return dict(inner.get_vocab()) if inner is not None else dict(self.tokenizer.encoder)

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files, where it is not open_clip's own."""
        from open_clip.tokenizer import HFTokenizer

        if isinstance(self.tokenizer, HFTokenizer):
            self.tokenizer.tokenizer.save_pretrained(str(folder))


def build_text(description: Mapping[str, Any], words: Path) -> OpenClipText:
    """A text encoder of a configuration, with random weights from the global torch generator."""
    return OpenClipText(build_model(description), description, words)


def load_text(source: str) -> OpenClipText:
    """Text encoder of a source, with its weights. Raises ArtifactError when nothing readable is there."""
    model, files = _load(source)
    return OpenClipText(model, files.settings, files.folder)


def load_open_clip_tower(source: str, dtype: torch.dtype | None) -> OpenClipTower:
    """Vision tower of a source, or of a folder that `save` wrote.

    Raises ArtifactError when nothing readable is there.
    """
    saved = Path(source) / PREPROCESSOR
    model, files = _load(source, visual_only=saved.is_file())
    part = VisualPart(model.visual, files.settings)
    part = part.to(dtype) if dtype is not None else part
    if saved.is_file():
        return OpenClipTower(part.eval(), read_transform(source, 224), stored_tokens(read_json(saved)))
    return OpenClipTower(part.eval(), _transform(source, part, files.preprocess))


def _load(source: str, visual_only: bool = False) -> tuple[Any, OpenClipFiles]:
    files = read_open_clip(source)
    model = build_model(files.settings)
    tensors = stripped(files.tensors, model.state_dict(), source)
    check_floats(source, {name: value for name, value in tensors.items() if value.is_floating_point()})
    wanted = {
        name: value for name, value in model.state_dict().items() if not visual_only or name.startswith("visual.")
    }
    check_fit(source, wanted, tensors, model.state_dict().keys())
    model.load_state_dict(tensors, strict=False)
    return model.eval(), files


def write_folder(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a source folder: configuration and weights, each in its own type."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": settings}, indent=2, sort_keys=True) + "\n")
    save_file(
        {name: value.contiguous().clone() for name, value in tensors.items()},
        str(folder / WEIGHTS[0]),
        {"format": "pt"},
    )


def build_model(settings: Mapping[str, Any]) -> Any:
    """A whole model of a configuration, with random weights from the global torch generator.

    Raises ArtifactError when open_clip cannot build it.
    """
    import open_clip

    tree = deepcopy(dict(settings))
    custom = tree.pop("custom_text", False) or "hf_model_name" in tree.get("text_cfg", {})
    try:
        return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**tree)
    except (TypeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"The open_clip configuration cannot be built: {reason}") from None


def _tokenizer(settings: Mapping[str, Any], words: Path | None) -> Any:
    """open_clip's own tokenizer, or the one its configuration names, whose files may be in a folder."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = settings.get("text_cfg", {})
    length, more = int(text.get("context_length", 77)), dict(text.get("tokenizer_kwargs") or {})
    if not text.get("hf_tokenizer_name"):
        return SimpleTokenizer(context_length=length, **more)
    here = words is not None and (words / "tokenizer_config.json").is_file()
    name = str(words) if here else text["hf_tokenizer_name"]
    try:
        return HFTokenizer(
            name, context_length=length, tokenizer_mode=text.get("tokenizer_mode"), trust_remote_code=False, **more
        )
    except READ_ERRORS as error:
        raise unreadable("tokenizer", name, error, "the tokenizer's files, beside the weights,") from None


def _transform(source: str, part: VisualPart, preprocess: Mapping[str, Any]) -> TransformConfig:
    """The transform of open_clip's own inference, compared with it on a picture."""
    import open_clip

    size = part.visual.image_size
    side = int(size[0] if isinstance(size, tuple | list) else size)
    said: dict[str, Any] = {
        "mean": tuple(preprocess.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        "std": tuple(preprocess.get("std") or open_clip.OPENAI_DATASET_STD),
    }
    way, filtered = str(preprocess.get("resize_mode", "shortest")), str(preprocess.get("interpolation", "bicubic"))
    prepare = open_clip.image_transform(side, is_train=False, resize_mode=way, interpolation=filtered, **said)
    mode: Any = "squash" if way == "squash" else "center_crop"
    resample: Any = filtered if filtered in ("bilinear", "lanczos") else "bicubic"
    described = TransformConfig(size=side, mode=mode, resample=resample, **said)
    return checked_transform(source, "open_clip", lambda: described, lambda picture: np.asarray(prepare(picture)))


_TITLE = (
    "an open_clip folder, NAME/TAG, hf-hub:OWNER/NAME, open_clip:NAME=FILE, or a file of OpenAI's or CLIP4Cir's CLIP"
)
BACKBONES.register(NAME)(Backbone(is_open_clip, load_open_clip_tower, load_text, build_text, title=_TITLE))
