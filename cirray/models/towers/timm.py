"""timm: any of its image encoders, from a folder or hub id as timm saves them (`config.json` with an architecture)."""

import json
from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from cirray.core.contents import spoken
from cirray.core.errors import ArtifactError, unknown_name
from cirray.data.config import TransformConfig
from cirray.models.sources.files import CONFIG, SINGLE, check_fit, open_weights
from cirray.models.sources.kinds import settings_of
from cirray.models.towers.backbones import BACKBONES, Backbone
from cirray.models.towers.image_encoder import ImageEncoderTower, read_as_tokens
from cirray.models.towers.preprocessors import checked_transform, own_transform, write_preprocessor

NAME = "timm"
_WRAPPER, _PREFIX = "timm_wrapper", "timm_model."
_COUNTER = "num_batches_tracked"
"""Batch norm's counter of training steps, which no token depends on."""
_BEHIND = ("head", "head_norm", "head_dist", "fc_norm", "attn_pool", "fc", "classifier", "global_pool")
"""Modules behind the tokens: pooling, and what classifies the pooled vector."""


class TimmTower(ImageEncoderTower):
    """An image encoder of timm, frozen. `settings` is its `config.json`."""

    def __init__(self, model: Any, transform: TransformConfig, settings: Mapping[str, Any]) -> None:
        """Wrap and freeze a model."""
        self.settings = dict(settings)
        super().__init__(model, transform)

    def hidden(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        """As the base: what timm's `forward_features` gives."""
        return read_as_tokens(self.model.forward_features(pixels_BCHW), int(self.model.num_features))

    @property
    def registers(self) -> slice:
        """The last ones of the tokens before the patches."""
        table = getattr(self.model, "reg_token", None)
        count = 0 if table is None else int(table.shape[1])
        first = int(getattr(self.model, "num_prefix_tokens", count)) - count
        return slice(first, first + count) if count else slice(0, 0)

    def with_transform(self, transform: TransformConfig) -> "TimmTower":
        """The same tower with another transform of the same size."""
        return TimmTower(self.model, transform, self.settings)

    def save(self, folder: str | Path) -> None:
        """Write `config.json`, `model.safetensors` and the preprocessor file."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG).write_text(json.dumps(self.settings, indent=2, sort_keys=True) + "\n")
        tensors = {name: value.contiguous().clone() for name, value in self.model.state_dict().items()}
        save_file(tensors, str(Path(folder) / SINGLE), {"format": "pt"})
        write_preprocessor(folder, self.transform)

    def _description(self) -> dict[str, Any]:
        return {"architecture": self.settings["architecture"], "arguments": spoken(_arguments(self.settings))}


def load_timm_tower(source: str, dtype: torch.dtype | None) -> TimmTower:
    """Vision tower of a folder or hub id as timm saves them, or of a folder that `save` wrote.

    Raises ArtifactError when nothing readable is there, timm has no such architecture, its weights do not fit, or its
    images are prepared in an unknown way.
    """
    weights = open_weights(source)
    settings = _plain(weights.config)
    model = _built(source, settings)
    names = [name for name in weights.names if not name.endswith(_COUNTER)]
    tensors = {name.removeprefix(_PREFIX): value for name, value in weights.read(names).items()}
    _fill(source, model, tensors)
    model = model.to(dtype or next(value.dtype for value in tensors.values()))
    return TimmTower(model, _transform(source, settings), settings)


def outline_timm_tower(source: str) -> TimmTower:
    """A tower of a folder's sizes, or of those of an architecture that timm knows.

    Raises ArtifactError as `load_timm_tower`.
    """
    known = settings_of(source) if Path(source).is_dir() else published_timm(source)
    settings = _plain(known or {})
    with unset_fake_temporarily():
        transform = _transform(source, settings)
        with torch.device("meta"):
            model = _built(source, settings)
    return TimmTower(model.to_empty(device="cpu"), transform, settings)


def published_timm(name: str) -> dict[str, Any] | None:
    """What a published model's `config.json` says, from timm's own table; None for a name that it does not know."""
    import timm

    family = Path(name).name
    if not timm.is_model(family):
        return None
    known = timm.get_pretrained_cfg(family)
    return {"architecture": family.partition(".")[0], "pretrained_cfg": known.to_dict() if known else {}}


def fits(source: str) -> bool:
    """Whether a folder's or hub repository's config is timm's, also in transformers' wrapper."""
    settings = settings_of(source)
    return "architecture" in settings and settings.get("model_type", _WRAPPER) == _WRAPPER


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `config.json` that say what is built and how its images are prepared; old ones have one level."""
    prepared = settings.get("pretrained_cfg", settings)
    names = ("input_size", "fixed_input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")
    return {
        "architecture": str(settings.get("architecture", "")),
        "model_args": dict(settings.get("model_args") or {}),
        "pretrained_cfg": {name: prepared[name] for name in names if prepared.get(name) is not None},
    }


def _arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the architecture, without those that decide what is behind the tokens."""
    prepared, given = settings["pretrained_cfg"], settings["model_args"]
    size = {"img_size": list(prepared["input_size"][-2:])} if prepared.get("fixed_input_size") else {}
    left_out = ("num_classes", "in_chans")
    return size | {name: value for name, value in given.items() if name not in left_out and value is not None}


def _built(source: str, settings: Mapping[str, Any]) -> Any:
    """A model without what is behind its tokens, with random weights.

    The architecture's own function is called: `timm.create_model` would also follow a `checkpoint_path` in the
    settings.
    """
    import timm

    name = settings["architecture"]
    if not timm.is_model(name):
        close = [known for known in timm.list_models() if known.startswith(name[:4])]
        raise ArtifactError(f"{source!r}: {unknown_name('architecture of the installed timm', name, close)}")
    try:
        model = timm.model_entrypoint(name)(pretrained=False, **{**_arguments(settings), "num_classes": 0})
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(f"timm cannot build the {name!r} of {source!r}: {reason}.") from None
    for part in _BEHIND:
        if isinstance(getattr(model, part, None), nn.Module):
            setattr(model, part, nn.Identity())
    return model.eval()


def _fill(source: str, model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(_COUNTER)}
    used = {name: value for name, value in tensors.items() if name.partition(".")[0] not in _BEHIND}
    check_fit(source, wanted, used)
    model.load_state_dict(used, strict=False)


def _transform(source: str, settings: Mapping[str, Any]) -> TransformConfig:
    """The transform of timm's own evaluation, compared with it on a picture."""
    own = own_transform(source) if Path(source).is_dir() else None
    if own is not None:
        return own
    from timm.data import create_transform, resolve_data_config

    found = resolve_data_config({}, pretrained_cfg=settings["pretrained_cfg"])
    prepare = create_transform(**found, is_training=False)

    def theirs(picture: Image.Image) -> np.ndarray:
        return np.asarray(prepare(picture), dtype=np.float32)

    return checked_transform(source, "timm", lambda: _described(found), theirs)


def _described(found: Mapping[str, Any]) -> TransformConfig:
    size, resize = int(found["input_size"][-1]), floor(found["input_size"][-1] / found["crop_pct"])
    return TransformConfig(
        size=size, resize=0 if resize == size else resize, resample=found["interpolation"],
        mode="squash" if found["crop_mode"] == "squash" else "center_crop",
        mean=tuple(found["mean"]), std=tuple(found["std"]),
    )  # fmt: skip


BACKBONES.register(NAME)(
    Backbone(fits, load_timm_tower, outline=outline_timm_tower, title="a model as timm saves it for the hub")
)
