"""From a PIL image of any size to the uint8 pixels an encoder reads; numbers are normalised on the device.

Pixels are square, or a picture keeps its own shape and is packed: its height and width as two 32-bit numbers, then its
pixels, as one row of bytes. Rows of a batch are as long as the longest one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cirray.core.contents import canonical
from cirray.data.config import OwnShapeConfig, TransformConfig
from cirray.types import stable_id

_HEADER = 8
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
        """Pixels of an RGB image, uint8: size x size x 3, or packed."""
        if not self.config.is_square:
            return packed(self._resized(image, self._own_sides(image)))
        image = padded(image, self.config.ratio) if self.config.mode == "target_pad" else image
        return np.asarray(self._centre(self._resized(image, self._sides(image))), dtype=np.uint8)

    def _resized(self, image: Image.Image, sides: tuple[int, int]) -> Image.Image:
        return image if image.size == sides else image.resize(sides, Image.Resampling[self.config.resample.upper()])

    def _own_sides(self, image: Image.Image) -> tuple[int, int]:
        """Width and height of a picture that keeps its shape."""
        width, height = image.size
        if isinstance(self.config, OwnShapeConfig) and self.config.mode == "patches":
            rows, columns = grid_of(height, width, self.config.most_patches)
            return self.config.patch * columns, self.config.patch * rows
        scale = self.size / (width * height) ** 0.5
        return image.size if scale >= 1 else (max(1, int(scale * width)), max(1, int(scale * height)))

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


def grid_of(height: int, width: int, most: int) -> tuple[int, int]:
    """Rows and columns of the largest grid of squares in a picture's shape, rounded up, that has at most `most`.

    SigLIP 2's NaFlex (docs/PAPERS.md#siglip-2): the largest scale of the picture at which its patches, the last ones of
    a side in part beyond it, are few enough. At such a scale one side is a whole number of patches.
    """
    by_rows = ((rows, -(-width * rows // height), rows * width) for rows in range(1, most + 1))
    by_columns = ((-(-height * columns // width), columns, columns * height) for columns in range(1, most + 1))
    fitting = (found for found in (*by_rows, *by_columns) if found[0] * found[1] <= most)
    rows, columns, _ = max(fitting, key=lambda found: found[2])
    return rows, columns


def packed(image: Image.Image) -> np.ndarray:
    """A picture of any shape as one row of bytes."""
    pixels_HWC = np.asarray(image, dtype=np.uint8)
    return np.concatenate([np.array(pixels_HWC.shape[:2], "<u4").view(np.uint8), pixels_HWC.ravel()])


def unpacked(packed_BL: np.ndarray) -> list[np.ndarray]:
    """Pictures `[H, W, 3]` of packed rows; what stands behind a shorter one is left out."""
    sizes = [tuple(map(int, row[:_HEADER].view("<u4"))) for row in packed_BL]
    return [
        row[_HEADER : _HEADER + 3 * height * width].reshape(height, width, 3)
        for row, (height, width) in zip(packed_BL, sizes, strict=True)
    ]


def stacked(pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Pixels of some images as one batch, packed rows filled up with zeros."""
    longest = max(len(row) for row in pixels)
    return np.stack([np.pad(row, (0, longest - len(row))) if row.ndim == 1 else row for row in pixels])


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
