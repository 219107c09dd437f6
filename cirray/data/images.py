"""Open any image that a user gives, guarded: header first, pixels only when the header is acceptable."""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.data.places import Box, Place, Span

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""The only decoders that are tried; Pillow's other forty (EPS, PDF, FITS, PSD, ...) never see a user's bytes."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
"""Pillow warns from 89 million pixels on; the cap here refuses earlier, in words."""

Source = Path | str | bytes | BinaryIO | Image.Image
CROP_MARGIN = 0.7
"""GeneCIS widens a box by this share of its sides on every side."""


def open_image(
    source: Source, limits: ImageLimits | None = None, name: str | None = None, box: Box | None = None
) -> Image.Image:
    """The first frame as an RGB image, upright, without metadata.

    Args:
        source: a path, the bytes of a file, a binary stream (read up to the byte limit), or an opened Pillow image, of
            whatever format, which is left as it is.
        limits: caps, checked on the header before any pixel is decoded.
        name: what to call the image in errors; the path, or "uploaded image", by default.
        box: cut this out (`crop_to_box`); its pixels are those of the file, so nothing is turned or shrunk before.

    Raises:
        DataError: missing, empty, too large, not one of `FORMATS`, out of limits, truncated or damaged.
    """
    limits = limits or ImageLimits()
    label = repr(name) if name else repr(str(source)) if isinstance(source, Path | str) else "uploaded image"
    image = source if isinstance(source, Image.Image) else _open(_read(source, limits, label), limits, label)
    check_size(image.size, limits, label)
    image = image.copy() if image is source else image
    return _decode(image, limits, label) if box is None else _decode_crop(image, label, box)


def open_place(place: Place, limits: ImageLimits | None = None, name: str | None = None) -> Image.Image:
    """The image at a local place: a file, some bytes of one, or a crop.

    Raises:
        DataError: as `open_image`.
    """
    label = name or place.uri
    limits = limits or ImageLimits()
    if place.span is None:
        return open_image(Path(place.uri), limits, name, place.box)
    try:
        with open(place.uri, "rb") as stream:
            data = read_span(stream, place.span, limits)
    except OSError as error:
        raise DataError(f"Image {label!r} cannot be read from {place.uri!r}: {error.strerror or error}.") from None
    return open_image(data, limits, label, place.box)


def read_span(stream: BinaryIO, span: Span, limits: ImageLimits) -> bytes:
    """Some bytes of a seekable stream, at most one more than the byte limit (which `open_image` then refuses)."""
    stream.seek(span[0])
    return stream.read(min(span[1], limits.max_bytes + 1))


def crop_to_box(image: Image.Image, box: Box) -> Image.Image:
    """GeneCIS's crop: the box with its margin (`crop_bounds`), on a black centred square.

    Raises:
        ValueError: when nothing of the box lies in the image.
    """
    crop = image.crop(crop_bounds(image.size, box))
    side = max(crop.size)
    square = Image.new("RGB", (side, side))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


def crop_bounds(size: tuple[int, int], box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a box with a margin of 0.7 of its sides.

    left = max(0, x - 0.7 w), right = min(W, left + 1.7 w) with the moved left, alike for top and bottom: without
    clamping the box grows to the left and to the top only. This is what the official code does (Vaze et al. 2023).

    Raises:
        ValueError: when nothing of the box lies in an image of that size.
    """
    x, y, width, height = box
    left, top = max(0.0, x - CROP_MARGIN * width), max(0.0, y - CROP_MARGIN * height)
    right = min(float(size[0]), left + (1 + CROP_MARGIN) * width)
    bottom = min(float(size[1]), top + (1 + CROP_MARGIN) * height)
    if round(right) <= round(left) or round(bottom) <= round(top):
        raise ValueError(f"the box {box} lies outside its {size[0]} x {size[1]} pixels")
    return round(left), round(top), round(right), round(bottom)


def check_size(size: tuple[int, int], limits: ImageLimits, label: str) -> None:
    """Refuse a width and height out of limits.

    Raises:
        DataError: naming the image, its size and the limit.
    """
    width, height = size
    short, long = min(size), max(size)
    if width * height > limits.max_pixels:
        raise DataError(f"Image {label} is {width} x {height}; at most {limits.max_pixels:,} pixels are accepted.")
    if short < limits.min_side:
        raise DataError(f"Image {label} is {width} x {height}; both sides must be at least {limits.min_side} pixels.")
    if long > limits.max_aspect * short:
        limit = f"{limits.max_aspect:g}:1"
        raise DataError(
            f"Image {label} is {width} x {height}; an aspect ratio of at most {limit} is accepted. Crop it."
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB.

    Transparent pixels are laid over white. 16-bit grey is divided by 257, as are 32-bit integers above 255; floats
    up to 1 are multiplied by 255.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_to_bytes(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, opaque).convert("RGB")
    return image.convert("RGB")


def _open(data: bytes, limits: ImageLimits, label: str) -> Image.Image:
    """The image of a file's bytes, its header read and no pixel."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise DataError(f"Image {label} has far more than {limits.max_pixels:,} pixels; make it smaller.") from None
    except Exception as error:
        raise DataError(f"Image {label} is not a readable {'/'.join(FORMATS)} file ({_reason(error)}).") from error


def _read(source: Path | str | bytes | BinaryIO, limits: ImageLimits, label: str) -> bytes:
    try:
        data = (
            _read_path(Path(source), limits, label) if isinstance(source, Path | str) else _read_stream(source, limits)
        )
    except OSError as error:
        raise DataError(f"Image {label} cannot be read: {error.strerror or error}.") from None
    if not data:
        raise DataError(f"Image {label} is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise DataError(f"Image {label} is larger than {limits.max_bytes:,} bytes; make it smaller.")
    return data


def _read_path(path: Path, limits: ImageLimits, label: str) -> bytes:
    if path.exists() and not path.is_file():
        raise DataError(f"Image {label} is not a file.")
    with path.open("rb") as stream:
        return stream.read(limits.max_bytes + 1)


def _read_stream(source: bytes | BinaryIO, limits: ImageLimits) -> bytes:
    return source if isinstance(source, bytes) else source.read(limits.max_bytes + 1)


def _decode(image: Image.Image, limits: ImageLimits, label: str) -> Image.Image:
    try:
        if image.format == "JPEG":
            image.draft(None, _draft_size(image.size, limits.draft_side))
        image.load()
        upright = to_rgb(ImageOps.exif_transpose(image))
        return Image.frombytes("RGB", upright.size, upright.tobytes())
    except Exception as error:
        raise DataError(f"Image {label} is truncated or damaged ({_reason(error)}).") from error


def _decode_crop(image: Image.Image, label: str, box: Box) -> Image.Image:
    try:
        image.load()
        return crop_to_box(to_rgb(image), box)
    except Exception as error:
        raise DataError(f"Image {label} is truncated or damaged, or has no such crop ({_reason(error)}).") from error


def _draft_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size a JPEG decoder may shrink to by powers of two: no side of the result falls below `side`."""
    scale = min(size) / side
    return (size[0], size[1]) if scale < 2 else (int(size[0] / scale), int(size[1] / scale))


def _to_bytes(image: Image.Image) -> np.ndarray:
    values_HW = np.nan_to_num(np.asarray(image, dtype=np.float64))
    top = float(values_HW.max(initial=0.0))
    if image.mode == "F":
        values_HW = values_HW * 255.0 if top <= 1.0 else values_HW
    elif image.mode.startswith("I;16") or top > 255:
        values_HW = values_HW / 257.0
    return np.clip(np.rint(values_HW), 0, 255).astype(np.uint8)


def _reason(error: Exception) -> str:
    """One line, without the address of the stream that Pillow's sentence ends in."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "its first bytes belong to no such format"
    return " ".join(str(error).split())[:120] or type(error).__name__
