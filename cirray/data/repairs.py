"""Remove metadata that makes a decoder fail; the pixels' own chunks stay byte for byte.

Decoders refuse a whole PNG, WebP, AVIF or TIFF for a checksum in a comment, a text that unpacks to megabytes or a cut
EXIF block. Nothing here touches pixels: a file whose picture itself is damaged stays damaged.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from typing import Literal

_PNG_START = 8
_TURNING = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
"""Keywords of PNG texts that may hold the orientation."""
_LARGEST_TEXT = 2**18
_TIFF_PIXELS = frozenset(
    (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338,
     339, 347, 529, 530, 531, 532)
)  # fmt: skip
_WEBP_PIXELS = (b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L")
_WEBP_ALPHA, _WEBP_ANIMATED, _WEBP_EXIF = 0x10, 0x02, 0x08


def versions(kind: str, data: bytes) -> Iterator[bytes]:
    """The file as it is, then with less and less metadata (the orientation goes last); each content once."""
    yield data
    last = data
    for repair in _REPAIRS.get(kind, ()):
        changed = repair(data)
        if changed != last:
            yield changed
        last = changed


def _png(data: bytes, keep: Callable[[bytes, bytes], bool]) -> bytes:
    """Critical chunks, and ancillary ones with a correct checksum that `keep` accepts."""
    at, kept = _PNG_START, [data[:_PNG_START]]
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name, end = data[at + 4 : at + 8], at + 12 + size
        body = data[at + 8 : end - 4]
        critical = not name[0] & 0x20
        if critical or (zlib.crc32(name + body) == int.from_bytes(data[end - 4 : end], "big") and keep(name, body)):
            kept.append(data[at:end])
        if name == b"IEND":
            return b"".join(kept)
        at = end
    return b"".join([*kept, data[at:]])


def _png_upright(data: bytes) -> bytes:
    def keep(name: bytes, body: bytes) -> bool:
        text = name in (b"tEXt", b"zTXt", b"iTXt") and body.startswith(_TURNING) and len(body) <= _LARGEST_TEXT
        return name in (b"tRNS", b"eXIf") or text

    return _png(data, keep)


def _jpeg(data: bytes, keep: Callable[[int, bytes], bool]) -> bytes:
    """Segments before the first scan; of APP1 to APP15 and comments only those that `keep` accepts."""
    at, kept = 2, [data[:2]]
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, end = data[at + 1], at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            break
        if marker == 0xFF:
            at += 1
            continue
        if not (0xE1 <= marker <= 0xEF or marker == 0xFE) or keep(marker, data[at + 4 : end]):
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])


def _jpeg_upright(data: bytes) -> bytes:
    return _jpeg(data, lambda marker, body: marker == 0xEE or (marker == 0xE1 and body.startswith(b"Exif\0")))


def _webp(data: bytes, exif: bool) -> bytes:
    """The picture's chunks under a header that promises no more than they are."""
    at, chunks = 12, dict[bytes, list[bytes]]()
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.setdefault(name, []).append(data[at : at + 8 + size + size % 2])
        at += 8 + size + size % 2
    wanted = (*_WEBP_PIXELS, b"EXIF") if exif else _WEBP_PIXELS
    kept = b"".join(b"".join(chunks.get(name, ())) for name in wanted)
    header = b"".join(chunks.get(b"VP8X", ())[:1])
    if header:
        flags = header[8] & (_WEBP_ALPHA | _WEBP_ANIMATED | (_WEBP_EXIF if exif and b"EXIF" in chunks else 0))
        header = header[:8] + bytes([flags]) + header[9:]
    body = b"WEBP" + header + kept
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _tiff(data: bytes) -> bytes:
    """The first directory with only the tags for the pixels' places, packing and orientation."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order)
    count = int.from_bytes(data[start : start + 2], order)
    entries = [data[start + 2 + 12 * at : start + 14 + 12 * at] for at in range(count)]
    kept = [entry for entry in entries if int.from_bytes(entry[:2], order) in _TIFF_PIXELS]
    made = len(kept).to_bytes(2, order) + b"".join(kept) + bytes(12 * (count - len(kept)) + 4)
    return data[:start] + made + data[start + len(made) :]


_REPAIRS: dict[str, tuple[Callable[[bytes], bytes], ...]] = {
    "PNG": (
        _png_upright,
        lambda data: _png(data, lambda name, body: name == b"tRNS"),
        lambda data: _png(data, lambda name, body: False),
    ),
    "JPEG": (_jpeg_upright, lambda data: _jpeg(data, lambda marker, body: marker == 0xEE)),
    "AVIF": (lambda data: re.sub(rb"(infe.{8})Exif", rb"\1skip", data, flags=re.DOTALL),),
    "TIFF": (_tiff,),
    "WEBP": (lambda data: _webp(data, True), lambda data: _webp(data, False)),
}
