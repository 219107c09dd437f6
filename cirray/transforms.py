"""From a PIL image of any size to the square uint8 pixels an encoder reads; numbers are normalised on the device."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from cirray.core.contents import canonical
from cirray.data.config import TransformConfig
from cirray.types import stable_id

REVISION = 2
"""Raise it when pixels change for the same settings: it is part of the digest, so features and indexes are made
anew."""


@dataclass(frozen=True)
class ImageTransform:
    """Deterministic resize and crop. Equal transforms have equal digests and make equal pixels."""

    config: TransformConfig

    @property
    def size(self) -> int:
        """Side of the pixels."""
        return self.config.size

    @property
    def digest(self) -> str:
        """16 hex digits over every setting and the revision of the code."""
        return stable_id("image-transform", REVISION, canonical(self.config.to_dict()))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Pixels of an RGB image, uint8, size x size x 3."""
        image = padded(image, self.config.ratio) if self.config.mode == "target_pad" else image
        sides = self._sides(image)
        if image.size != sides:
            image = image.resize(sides, Image.Resampling[self.config.resample.upper()])
        return np.asarray(self._centre(image), dtype=np.uint8)

    def _sides(self, image: Image.Image) -> tuple[int, int]:
        """Width and height before the central square is cut out; the longer side is rounded down."""
        (width, height), side = image.size, self.config.resize or self.size
        if self.config.mode == "squash":
            return side, side
        short = min(width, height)
        return side * width // short, side * height // short

    def _centre(self, image: Image.Image) -> Image.Image:
        half = round if self.config.odd_margin == "even" else int
        left, top = half((image.width - self.size) / 2), half((image.height - self.size) / 2)
        return image.crop((left, top, left + self.size, top + self.size))


def build_transform(config: TransformConfig) -> ImageTransform:
    """The transform that a config describes."""
    return ImageTransform(config)


def padded(image: Image.Image, ratio: float) -> Image.Image:
    """Pad an elongated image with black to aspect `ratio`; others are returned as they are.

    CLIP4CIR's way (docs/PAPERS.md#clip4cir), with ratio 1.25.
    """
    width, height = image.size
    if max(width, height) <= ratio * min(width, height):
        return image
    short = int(max(width, height) / ratio)
    across, down = max(short - width, 0) // 2, max(short - height, 0) // 2
    result = Image.new("RGB", (width + 2 * across, height + 2 * down))
    result.paste(image, (across, down))
    return result
