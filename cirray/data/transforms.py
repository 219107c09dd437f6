"""From a PIL image of any size to the square uint8 pixels an encoder reads; numbers are normalised on the device."""

from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from cirray.core.contents import canonical
from cirray.data.config import TransformConfig
from cirray.types import stable_id

_REVISION = 2
"""Raise it when pixels change for the same settings: it is part of the digest, so features are made anew."""


@dataclass(frozen=True)
class ImageTransform:
    """Deterministic resize and crop. Equal transforms have equal digests and make equal pixels."""

    size: int
    mode: str
    ratio: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def digest(self) -> str:
        """16 hex digits over every setting and the revision of the code."""
        return stable_id("image-transform", _REVISION, canonical(asdict(self)))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Pixels of an RGB image, uint8, size x size x 3."""
        return np.asarray(_MODES[self.mode](image, self.size, self.ratio), dtype=np.uint8)


def build_transform(config: TransformConfig) -> ImageTransform:
    """The transform that a config describes."""
    return ImageTransform(config.size, config.mode, config.ratio, config.mean, config.std)


def squash(image: Image.Image, size: int, ratio: float = 1.0) -> Image.Image:
    """Resize to a square, ignoring the aspect ratio (bicubic)."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def center_crop(image: Image.Image, size: int, ratio: float = 1.0) -> Image.Image:
    """Resize the shorter side to `size` (bicubic), keep the central square."""
    width, height = image.size
    short = min(width, height)
    resized = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
    return resized.crop((left, top, left + size, top + size))


def target_pad(image: Image.Image, size: int, ratio: float = 1.25) -> Image.Image:
    """Pad an elongated image with black to aspect `ratio`, then crop the centre.

    CLIP4CIR's way (docs/PAPERS.md#clip4cir), with ratio 1.25; images up to that ratio are not padded.
    """
    width, height = image.size
    if max(width, height) <= ratio * min(width, height):
        return center_crop(image, size)
    short = int(max(width, height) / ratio)
    across, down = max(short - width, 0) // 2, max(short - height, 0) // 2
    padded = Image.new("RGB", (width + 2 * across, height + 2 * down))
    padded.paste(image, (across, down))
    return center_crop(padded, size)


_MODES = {"squash": squash, "center_crop": center_crop, "target_pad": target_pad}
