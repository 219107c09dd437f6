"""Decoded pixels of any mode as upright RGB: transparency over white, deep greys scaled, damaged metadata ignored; and
small copies of them.
"""

import io

import numpy as np
from PIL import Image

_GREY_TOP = 65_535.0
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> the operation that undoes it."""
_ORIENTATION = 0x0112
_KEY_SCALES = {"L;2": 85, "L;4": 17}
_PNG_SIDE = 96
"""Copies up to this side are PNG, since JPEG harms drawings and icons."""


def upright(image: Image.Image) -> Image.Image:
    """A decoded image turned by its EXIF or XMP orientation; unreadable metadata is ignored."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  whatever a parser of foreign metadata raises; the pixels are good
        turn = None
    return image if turn is None else image.transpose(turn)


def colour_key(image: Image.Image) -> object:
    """The transparent colour of an image that is not yet decoded, in the values that its pixels will have.

    A PNG names it in the file's own depth, while pixels of 2 and 4 bits are spread over 8, and those of three times 16
    bits are cut to 8.
    """
    tiles = getattr(image, "tile", ())
    key, raw = image.info.get("transparency"), str(tiles[0][3]) if tiles else ""
    if isinstance(key, int) and raw in _KEY_SCALES:
        return key * _KEY_SCALES[raw]
    if isinstance(key, tuple) and raw.startswith("RGB;16"):
        return tuple(value >> 8 for value in key)
    return key


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded image of any mode as RGB.

    Transparent pixels are laid over white. 16-bit grey is divided by 257, as are 32-bit integers above 255; floats
    up to 1 are multiplied by 255; values above 65,535 are scaled to the largest.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_deep_to_bytes(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", opaque.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, opaque).convert("RGB")
    return image.convert("RGB")


def thumbnail(image: Image.Image, size: int) -> bytes:
    """An RGB image of at most `size` pixels a side, encoded without any metadata: PNG when small, else JPEG."""
    scale = min(1.0, size / max(image.size))
    sides = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(sides, Image.Resampling.HAMMING)  # as sharp as bicubic, at half its cost
    small.info = {}  # Pillow writes a file's comment and profile again
    stream = io.BytesIO()
    if max(small.size) <= _PNG_SIDE:
        small.save(stream, "PNG")
    else:
        small.save(stream, "JPEG", quality=88)
    return stream.getvalue()


def _deep_to_bytes(image: Image.Image) -> np.ndarray:
    values_HW = np.nan_to_num(np.asarray(image, dtype=np.float64))
    key = image.info.get("transparency")
    clear_HW = values_HW == key if isinstance(key, int) else np.zeros(values_HW.shape, dtype=bool)
    top = float(values_HW.max(initial=0.0))
    if image.mode == "F" and top <= 1.0:
        values_HW = values_HW * 255.0
    elif top > _GREY_TOP:
        values_HW = values_HW * (255.0 / top)
    elif image.mode.startswith("I;16") or top > 255:
        values_HW = values_HW / 257.0
    bytes_HW = np.clip(np.rint(values_HW), 0, 255).astype(np.uint8)
    bytes_HW[clear_HW] = 255
    return bytes_HW
