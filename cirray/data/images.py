"""Open a user's image safely: the header first, the pixels only when the header is acceptable."""

import hashlib
import importlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from PIL import Image

from cirray.core import storage
from cirray.core.errors import CirrayError, DataError, StoreError, reason_of
from cirray.core.refusals import is_away
from cirray.data.config import ImageLimits
from cirray.data.kinds import HEAD_BYTES, sniff, stranger
from cirray.data.pixels import colour_key, to_rgb, upright
from cirray.data.places import Box, Place, Span
from cirray.data.repairs import versions

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that are always read. The first bytes choose the decoder; Pillow's other forty (EPS, PDF, FITS, PSD, ...)
never see a user's bytes."""
PLUGINS = {"HEIF": ("pillow_heif", "register_heif_opener"), "JXL": ("pillow_jxl", "")}
"""Formats of the extra `cirray[photos]`: module, and the function in it that makes Pillow know it."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
"""Pillow warns from 89 million pixels on; the cap here refuses earlier, in words."""
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
"""Nor its warnings about metadata, which is not read here."""

Source = Path | str | bytes | BinaryIO | Image.Image
DrawnT = TypeVar("DrawnT")
CROP_MARGIN = 0.7
"""GeneCIS's margin of a box, as a share of its sides."""


class MissingImageError(DataError):
    """No file is there, or a link points nowhere."""


class ForeignError(DataError):
    """The bytes are no picture of a format that is read here."""


class LimitError(DataError):
    """A picture out of limits; `size` and `kind` are what its header says, where that was read."""

    size: tuple[int, int] = (0, 0)
    kind: str = ""


class Decoded(NamedTuple):
    """A file's pixels; `repaired` names the damaged metadata that was ignored, if any."""

    result: object
    kind: str
    size: tuple[int, int]
    repaired: str = ""


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

    Raises DataError: missing, empty, too large, not one of `FORMATS` (or `PLUGINS`, where installed), out of limits,
    truncated or damaged. Damaged metadata costs no picture (`cirray.data.repairs`).
    """
    limits = limits or ImageLimits()
    label = repr(name) if name else repr(str(source)) if isinstance(source, Path | str) else "uploaded image"

    def draw(image: Image.Image) -> Image.Image:
        return _upright_rgb(image, limits.draft_side) if box is None else _crop(image, box, label)

    if isinstance(source, Image.Image):
        check_size(source.size, limits, label)
        return _guarded(draw, source.copy(), label)
    result = decode(_read(source, limits, label), limits, label, draw).result
    assert isinstance(result, Image.Image)
    return result


def decode(data: bytes, limits: ImageLimits, label: str, draw: Callable[[Image.Image], object]) -> Decoded:
    """Open a file's bytes with the decoder of its first bytes, and apply `draw` to the image.

    When that fails, the same is tried without the metadata.

    Raises ForeignError: no picture, or one of a format that is not read (here); LimitError: empty, or out of limits;
    DataError: the picture itself is truncated or damaged.
    """
    _check_bytes(data, limits, label)
    kind = sniff(data[:HEAD_BYTES])
    _check_kind(kind, data, label)
    first = ""
    for version in versions(kind, data):
        try:
            with Image.open(io.BytesIO(version), formats=[kind]) as image:
                size = image.size
                check_size(size, limits, label, kind)
                return Decoded(draw(image), kind, size, first)
        except DataError:
            raise
        except Image.DecompressionBombError:
            raise LimitError(
                f"Image {label} has far more than {limits.max_pixels:,} pixels; make it smaller."
            ) from None
        except Exception as error:  # noqa: BLE001  any decoder may raise anything; the first reason is told
            first = first or _reason(error)
    raise DataError(
        f"Image {label} is {'an' if kind == 'AVIF' else 'a'} {kind} file that is truncated or damaged ({first})."
    )


def open_place(place: Place, limits: ImageLimits | None = None, name: str | None = None) -> Image.Image:
    """The image at a place: a file or object, some bytes of one, or a crop. Raises DataError as `open_image`."""
    name = name or place.uri
    limits = limits or ImageLimits()
    return open_image(read_place(place, limits, name), limits, name, place.box)


def read_place(place: Place, limits: ImageLimits, name: str | None = None) -> bytes:
    """Bytes of the image at a place, at most one more than the byte limit (which `open_image` then refuses).

    Raises DataError: missing, no file (a folder, a pipe), or not to be read; StoreError: its store does not answer.
    """
    name = name or place.uri
    if storage.is_local(place.uri):
        return _read_file(storage.local_path(place.uri), place.span, limits, repr(name))
    try:
        filesystem, remote = storage.resolve(place.uri)
        with storage.asking(place.uri), filesystem.open_input_file(remote) as stream:
            return read_span(stream, place.span or (0, limits.max_bytes + 1), limits)
    except OSError as error:
        raise _unread(error, repr(name)) from None


def read_span(stream: BinaryIO, span: Span, limits: ImageLimits) -> bytes:
    """Some bytes of a seekable stream, at most one more than the byte limit (which `open_image` then refuses)."""
    stream.seek(span[0])
    return stream.read(min(span[1], limits.max_bytes + 1))


def picture_digest(data: bytes) -> str:
    """Digest of a picture file's bytes, 32 hex digits."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def crop_to_box(image: Image.Image, box: Box) -> Image.Image:
    """GeneCIS's crop: the box with its margin (`crop_bounds`), on a black centred square.

    Raises ValueError when nothing of the box lies in the image.
    """
    crop = image.crop(crop_bounds(image.size, box))
    side = max(crop.size)
    square = Image.new("RGB", (side, side))
    square.paste(crop, ((side - crop.width) // 2, (side - crop.height) // 2))
    return square


def crop_bounds(size: tuple[int, int], box: Box) -> tuple[int, int, int, int]:
    """Left, top, right, bottom in pixels of a box with a margin of 0.7 of its sides.

    left = max(0, x - 0.7 w), right = min(W, left + 1.7 w) with the moved left, alike for top and bottom: without
    clamping the box grows to the left and to the top only. So does the authors' code (docs/PAPERS.md#genecis).

    Raises ValueError when nothing of the box lies in an image of that size.
    """
    x, y, width, height = box
    left, top = max(0.0, x - CROP_MARGIN * width), max(0.0, y - CROP_MARGIN * height)
    right = min(float(size[0]), left + (1 + CROP_MARGIN) * width)
    bottom = min(float(size[1]), top + (1 + CROP_MARGIN) * height)
    if round(right) <= round(left) or round(bottom) <= round(top):
        raise ValueError(f"the box {box} lies outside its {size[0]} x {size[1]} pixels")
    return round(left), round(top), round(right), round(bottom)


def check_size(size: tuple[int, int], limits: ImageLimits, label: str, kind: str = "") -> None:
    """Refuse a width and height out of limits. Raises LimitError naming the image, its size and the limit."""
    width, height = size
    short, long = min(size), max(size)
    problem = ""
    if width * height > limits.max_pixels:
        problem = f"at most {limits.max_pixels:,} pixels are accepted."
    elif short < limits.min_side:
        problem = f"both sides must be at least {limits.min_side} pixels."
    elif long > limits.max_aspect * short:
        problem = f"an aspect ratio of at most {limits.max_aspect:g}:1 is accepted. Crop it."
    if problem:
        error = LimitError(f"Image {label} is {width} x {height}; {problem}")
        error.size, error.kind = size, kind
        raise error


def load_small(image: Image.Image) -> None:
    """Decode every byte of an opened image; a JPEG at an eighth of its size, which still reads all of its data."""
    if image.format in ("JPEG", "MPO"):
        image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
    image.load()


def _check_bytes(data: bytes, limits: ImageLimits, label: str) -> None:
    if not data:
        raise LimitError(f"Image {label} is empty (0 bytes).")
    if len(data) > limits.max_bytes:
        raise LimitError(f"Image {label} is larger than {limits.max_bytes:,} bytes; make it smaller.")


def _check_kind(kind: str, data: bytes, label: str) -> None:
    if kind in PLUGINS and not _plugin(kind):
        raise ForeignError(
            f"Image {label} is a {'HEIC' if kind == 'HEIF' else kind} picture; install the extra that reads it "
            "(pip install 'cirray[photos]') or save it as JPEG."
        )
    if not kind:
        what = stranger(data[:HEAD_BYTES])
        what = f"it is {what}" if what else "its first bytes belong to no such format"
        raise ForeignError(f"Image {label} is not a readable {'/'.join(FORMATS)} file ({what}).")


def _plugin(kind: str) -> bool:
    """Register an optional format's decoder with Pillow; whether it is installed."""
    module, register = PLUGINS[kind]
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    if register:
        getattr(found, register)()
    return True


def _read(source: Path | str | bytes | BinaryIO, limits: ImageLimits, label: str) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, Path | str):
        return _read_file(Path(source), None, limits, label)
    return _read_stream(source, limits, label)


def _read_stream(stream: BinaryIO, limits: ImageLimits, label: str) -> bytes:
    try:
        return stream.read(limits.max_bytes + 1)
    except OSError as error:
        raise _unread(error, label) from None


def _read_file(path: Path, span: Span | None, limits: ImageLimits, label: str) -> bytes:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise DataError(f"Image {label} is not a file.")
        with path.open("rb") as stream:
            return read_span(stream, span or (0, limits.max_bytes + 1), limits)
    except OSError as error:
        if path.is_symlink() and not path.exists():
            raise MissingImageError(
                f"Image {label} is a link to {os.readlink(path)!r}, where there is no file."
            ) from None
        raise _unread(error, label) from None


def _unread(error: OSError, label: str) -> CirrayError:
    if is_away(error):
        return StoreError(f"Image {label} cannot be read: its store does not answer ({_reason(error)}).")
    kind = MissingImageError if isinstance(error, FileNotFoundError) else DataError
    return kind(f"Image {label} cannot be read: {_reason(error)}.")


def _upright_rgb(image: Image.Image, draft_side: int) -> Image.Image:
    if image.format in ("JPEG", "MPO"):
        image.draft(None, _draft_size(image.size, draft_side))
    rgb = to_rgb(upright(_loaded(image)))
    return Image.frombytes("RGB", rgb.size, rgb.tobytes())


def _crop(image: Image.Image, box: Box, label: str) -> Image.Image:
    rgb = to_rgb(_loaded(image))
    try:
        return crop_to_box(rgb, box)
    except ValueError as error:
        raise DataError(f"Image {label} has no such crop: {error}.") from None


def _loaded(image: Image.Image) -> Image.Image:
    key = colour_key(image) if image.format == "PNG" else None
    image.load()
    if key is not None:
        image.info["transparency"] = key
    return image


def _guarded(draw: Callable[[Image.Image], DrawnT], image: Image.Image, label: str) -> DrawnT:
    try:
        return draw(image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"Image {label} is truncated or damaged ({_reason(error)}).") from error


def _draft_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size a JPEG decoder may shrink to by powers of two: no side of the result falls below `side`."""
    scale = min(size) / side
    return (size[0], size[1]) if scale < 2 else (int(size[0] / scale), int(size[1] / scale))


def _reason(error: Exception) -> str:
    """Pillow's message on one line, without the address of the stream."""
    if type(error).__name__ == "UnidentifiedImageError":
        return "its header cannot be read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return reason_of(error)
