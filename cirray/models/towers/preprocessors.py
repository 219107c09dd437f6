"""How a tower's images are prepared: files of image processors, read and written."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor
from transformers.utils import cached_file

from cirray.core.errors import ArtifactError
from cirray.data.config import OwnShapeConfig, TransformConfig, transform_config
from cirray.models.quiet import quiet
from cirray.models.sources.files import READ_ERRORS, read_json
from cirray.models.sources.pretrained import pretrained
from cirray.transforms import build_transform

PREPROCESSOR = "preprocessor_config.json"
_OWN = "cirray_transform"
_PROBE = (97, 61)
_TOLERANCE = 0.75
"""Grey levels by which a library may differ on average: resizing numbers before they are rounded gives up to 0.3, a cut
that begins one pixel beside from 1.5."""
_LARGE_CONVNEXT = 384
"""Side from which on ConvNeXT's processors squash images in place of cropping them."""


def write_preprocessor(folder: str | Path, transform: TransformConfig, **more: Any) -> None:
    """Write the preprocessor file that `read_transform` reads."""
    text = json.dumps({**_settings(transform), **more}, indent=2, sort_keys=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / PREPROCESSOR).write_text(text + "\n")


def _settings(transform: TransformConfig) -> dict[str, Any]:
    """The transform as a Hugging Face image processor's settings, with cirray's own beside them.

    Hugging Face's processors neither pad like `target_pad` nor crop after squashing; they would squash or crop.
    """
    if isinstance(transform, OwnShapeConfig):
        return {
            "image_processor_type": "Siglip2ImageProcessor", "patch_size": transform.patch,
            "max_num_patches": transform.most_patches, **_numbers(transform),
        }  # fmt: skip
    side, crops = transform.resize or transform.size, transform.mode != "squash"
    square = {"height": transform.size, "width": transform.size}
    cut = {"size": {"shortest_edge": side}, "crop_size": square, "do_center_crop": True}
    return {
        "image_processor_type": "CLIPImageProcessor" if crops else "BlipImageProcessor",
        **(cut if crops else {"size": square}),
        **_numbers(transform),
    }


def _numbers(transform: TransformConfig) -> dict[str, Any]:
    return {
        "resample": int(Image.Resampling[transform.resample.upper()]),
        "image_mean": list(transform.mean),
        "image_std": list(transform.std),
        _OWN: transform.to_dict(),
    }


def own_transform(folder: str | Path) -> TransformConfig | None:
    """The transform in a folder that cirray wrote, or None. Raises ArtifactError when the file is damaged."""
    path = Path(folder) / PREPROCESSOR
    return read_transform(folder, 0) if path.is_file() and _OWN in read_json(path) else None


def read_transform(source: str | Path, side: int) -> TransformConfig:
    """The transform in a preprocessor file, of cirray or of Hugging Face; `side` in pixels where no file says it.

    Raises ArtifactError when the file is damaged.
    """
    path = _preprocessor_file(source)
    if path is None:
        return TransformConfig(size=side)
    stored = read_json(path)
    try:
        return transform_config(stored[_OWN]) if _OWN in stored else transform_of(stored, side)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(f"{str(path)!r} describes no preparation of images: {reason}.") from None


def library_transform(source: str, side: int) -> TransformConfig:
    """The transform of a source's image processor, compared with the processor itself on a picture.

    The source is what `AutoImageProcessor` reads; `side` is in pixels, where the settings do not say it.

    Raises ArtifactError when there is no processor, or it prepares images in a way that a `TransformConfig` cannot say.
    """
    try:
        with quiet():
            processor = pretrained(AutoImageProcessor, source)
    except (*READ_ERRORS, ImportError) as error:
        reason = "no image processor" if isinstance(error, OSError) else " ".join(str(error).split())[:160]
        raise ArtifactError(
            f"{source!r} does not say how its images are prepared ({reason}). Put the model's {PREPROCESSOR} beside "
            "its config.json."
        ) from None
    settings = processor.to_dict()

    def theirs(picture: Image.Image) -> np.ndarray:
        return np.asarray(processor(images=picture, return_tensors="np")["pixel_values"][0], dtype=np.float32)

    grid = "max_num_patches" in settings  # its pixels come as a sequence of patches, in a grid of the picture's shape
    kind = type(processor).__name__
    return checked_transform(source, kind, lambda: transform_of(settings, side), None if grid else theirs)


def checked_transform(
    source: str, kind: str, described: Callable[[], TransformConfig], theirs: Callable[[Image.Image], Any] | None
) -> TransformConfig:
    """A transform that was read from a library's settings, compared with the library's own on a picture.

    Args:
        source: folder or hub id, for errors.
        kind: what prepares the images there, for errors.
        described: reads the transform.
        theirs: picture -> normalised numbers `[3, H, W]` as the library makes them; None: not compared.

    Raises:
        ArtifactError: when the settings describe another kind of preparation, or the two differ by more than rounding.
    """
    try:
        transform = described()
        if theirs is not None:
            _compare(theirs, transform)
    except (*READ_ERRORS, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(
            f"Images for {source!r} are prepared in an unknown way ({kind}: {reason}). Known are resizing to a square, "
            "and resizing the shorter side, with or without a central crop to a square."
        ) from None
    return transform


def transform_of(settings: Mapping[str, Any], side: int) -> TransformConfig:
    """The transform that the fields of a `preprocessor_config.json` describe; `side` in pixels where they do not say
    it.

    Raises KeyError, TypeError or ValueError when they describe none.
    """
    size, crop = _sizes(settings.get("size") or side), settings.get("crop_size")
    if settings.get("max_num_patches"):  # NaFlex: the grid of a square picture
        fields = _whole(int(settings["max_num_patches"] ** 0.5) * int(settings["patch_size"]))
    elif settings.get("do_center_crop"):
        mode = "squash" if len(size) == 2 else "center_crop"
        fields = _central(_square(_sizes(crop or side)), _square(size), mode)
    elif settings.get("crop_pct") and size[0] < _LARGE_CONVNEXT:
        fields = _central(size[0], int(size[0] / settings["crop_pct"]), "center_crop")
    else:
        fields = _whole(_square(size))
    if settings.get("resample") is not None:
        fields["resample"] = Image.Resampling(int(settings["resample"])).name.lower()
    return TransformConfig(**fields, **_normalisation(settings))


def _whole(size: int) -> dict[str, Any]:
    return {"size": size, "mode": "squash"}


def _central(size: int, resize: int, mode: str) -> dict[str, Any]:
    return {"size": size, "resize": 0 if resize == size else resize, "mode": mode, "odd_margin": "down"}


def _normalisation(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("do_normalize", True) is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return {"mean": tuple(settings["image_mean"]), "std": tuple(settings["image_std"])}


def _sizes(size: Any) -> tuple[int, ...]:
    """Height and width, or the shorter side alone."""
    if not isinstance(size, Mapping):
        return (int(size),)
    if "shortest_edge" in size and not size.get("longest_edge"):
        return (int(size["shortest_edge"]),)
    if "height" in size and "width" in size:
        return int(size["height"]), int(size["width"])
    raise ValueError(f"images of size {dict(size)}")


def _square(size: tuple[int, ...]) -> int:
    if len(set(size)) != 1:
        raise ValueError(f"images of {' x '.join(map(str, size))} px, which are not square")
    return size[0]


def _compare(theirs: Callable[[Image.Image], Any], transform: TransformConfig) -> None:
    """Compare a transform with a library's on a picture that is not square.

    Raises ValueError when they differ by more than rounding.
    """
    rng = np.random.default_rng(0)
    blocks = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize(_PROBE, Image.Resampling.BICUBIC)
    theirs_CHW = theirs(picture)
    mean_C, std_C = np.array(transform.mean, np.float32), np.array(transform.std, np.float32)
    ours_CHW = ((build_transform(transform)(picture) / np.float32(255) - mean_C) / std_C).transpose(2, 0, 1)
    if theirs_CHW.shape != ours_CHW.shape:
        raise ValueError(f"a picture becomes {' x '.join(map(str, theirs_CHW.shape))} numbers")
    levels = float((np.abs(theirs_CHW - ours_CHW) * std_C[:, None, None]).mean() * 255)
    if levels > _TOLERANCE:
        raise ValueError(f"its values differ by {levels:.1f} of 255 grey levels")


def _preprocessor_file(source: str | Path) -> Path | None:
    """The preprocessor's settings in a folder or, with the weights already fetched, on the hub."""
    if Path(source).is_dir():
        path = Path(source) / PREPROCESSOR
        return path if path.is_file() else None
    found = cached_file(str(source), PREPROCESSOR, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def check_size(source: str, transform: TransformConfig, side: int, patch: int) -> None:
    """Refuse a transform that makes images of another size than the position table is for.

    Raises ArtifactError naming both sizes.
    """
    if transform.size != side:
        raise ArtifactError(
            f"The position table of {source!r} takes images of {side} px ({side // patch} x {side // patch} patches of "
            f"{patch} px), its {PREPROCESSOR} makes {transform.size} px. Correct the preprocessor's size, or take a "
            f"checkpoint that was trained at {transform.size} px."
        )
