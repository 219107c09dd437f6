"""Metadata that a decoder stumbles over costs no picture, and changes no pixel; what is truly damaged stays refused."""

import io
import struct
import sys
import types
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.data.doctor import check_image
from cirray.data.images import open_image
from cirray.data.kinds import sniff
from cirray.data.places import Place

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
MPF_INDEX = b"MPF\0II*\0\x08\0\0\0\x02\0\x01\xb0\x04\0\x01\0\0\0\x03\0\0\0\x02\xb0\x07\0\x10\0\0\0\x20\0\0\0"


def encoded(image=PICTURE, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def chunk(name, body, crc=None):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc or zlib.crc32(name + body))


def png_with(*chunks, data=None):
    data = data or encoded()
    return data[:33] + b"".join(chunks) + data[33:]


def jpeg_with(marker, body):
    data = encoded(format="JPEG")
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body + data[2:]


def webp_with(*chunks, lie=0):
    data = encoded(format="WEBP", lossless=True, exif=TURNED[:6])
    body = data[12:] + b"".join(name + struct.pack("<I", len(b) + lie) + b + b"\0" * (len(b) % 2) for name, b in chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


DAMAGED_PNG = {
    "rubbish exif profile": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n   9\nzz-not-hex"),
    "large text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * 2_000_000)),
    "large exif text": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"a" * 2_000_000)),
    "gamma checksum": chunk(b"gAMA", struct.pack(">I", 45455), crc=1),
    "short gamma": chunk(b"gAMA", b"\0"),
    "text checksum": chunk(b"tEXt", b"Author\0me", crc=7),
    "short resolution": chunk(b"pHYs", b"12"),
    "chromaticities": chunk(b"cHRM", b"123"),
    "colour profile": chunk(b"iCCP", b"name\0\0no zlib stream"),
    "exif": chunk(b"eXIf", b"neither II nor MM"),
    "exif checksum": chunk(b"eXIf", TURNED[6:], crc=9),
    "short colour key": chunk(b"tRNS", b"\0"),
    "time": chunk(b"tIME", b"\xff"),
    "international text": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0not zlib"),
}


@pytest.mark.parametrize("name", DAMAGED_PNG)
def test_a_png_with_damaged_metadata_keeps_its_pixels(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = open_image(png_with(DAMAGED_PNG[name]))
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE))


@pytest.mark.parametrize("name", ["gamma checksum", "large text"])
def test_which_way_is_up_survives_damage_beside_it(name):
    damaged = png_with(DAMAGED_PNG[name], chunk(b"eXIf", TURNED[6:]))
    assert open_image(damaged).size == (40, 60)
    xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'
    assert open_image(png_with(DAMAGED_PNG[name], chunk(b"iTXt", xmp))).size == (40, 60)


def test_transparency_survives_damage_beside_it():
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    data = encoded(image, transparency=0)
    assert open_image(png_with(DAMAGED_PNG["gamma checksum"], data=data)).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(
    "data",
    [
        webp_with((b"EXIF", b"garbage")), webp_with((b"XMP ", b"x" * 9), lie=500), webp_with((b"ICCP", b"bad")),
        webp_with()[:4] + b"\xff\xff\0\0" + webp_with()[8:], webp_with() + b"rubbish",
    ],
    ids=["exif", "cut xmp", "profile", "length", "trailing"],
)  # fmt: skip
def test_a_webp_with_damaged_metadata_keeps_its_pixels(data):
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(PICTURE))


@pytest.mark.parametrize(
    "data",
    [
        jpeg_with(0xE1, b"Exif\0\0garbage"), jpeg_with(0xE2, b"ICC_PROFILE\0\0\0garbage"), jpeg_with(0xE2, b"MPF\0bad"),
        jpeg_with(0xED, b"Photoshop 3.0\x008BIM\x04"), jpeg_with(0xFE, b"\xff" * 50),
        encoded(format="JPEG") + b"\0" * 9,
        jpeg_with(0xE2, MPF_INDEX),
        jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0<broken"),
    ],
    ids=["exif", "profile", "mpf", "photoshop", "comment", "trailing", "mpf index", "xmp"],
)  # fmt: skip
def test_a_jpeg_with_damaged_metadata_keeps_its_pixels(data):
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(open_image(encoded(format="JPEG"))))


def test_an_avif_with_damaged_exif_keeps_its_pixels():
    exif = b"II*\0\x08\0\0\0\x01\0\x0f\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"
    data = encoded(format="AVIF", exif=b"Exif\0\0" + exif)
    broken = data.replace(exif[:8], b"XXXX\xff\xff\xff\xff")
    assert broken != data and np.array_equal(np.asarray(open_image(broken)), np.asarray(open_image(data)))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tag", [270, 305, 700, 34675, 34665])
def test_a_tiff_with_a_damaged_tag_keeps_its_pixels_and_its_orientation(order, tag):
    def entry(name, kind, count, value):
        short = kind == 3 and count == 1
        return struct.pack(f"{order}HHI", name, kind, count) + struct.pack(f"{order}{'HH' if short else 'I'}", *(
            (value, 0) if short else (value,)
        ))  # fmt: skip

    pixels, bits = PICTURE.tobytes(), struct.pack(f"{order}HHH", 8, 8, 8)
    start = 8 + len(pixels) + len(bits)
    table = [
        (256, 4, 1, 60), (257, 4, 1, 40), (258, 3, 3, start - len(bits)), (259, 3, 1, 1), (262, 3, 1, 2),
        (273, 4, 1, 8), (274, 3, 1, 6), (277, 3, 1, 3), (278, 4, 1, 40), (279, 4, 1, len(pixels)), (tag, 2, 500, 2**31),
    ]  # fmt: skip
    entries = b"".join(entry(*row) for row in sorted(table))
    head = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", start)
    image = open_image(head + pixels + bits + struct.pack(f"{order}H", len(table)) + entries + bytes(4))
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE.transpose(Image.Transpose.ROTATE_270)))


def test_the_second_frame_of_an_mpo_may_be_broken():
    data = encoded(format="MPO", save_all=True, append_images=[PICTURE])
    assert np.array_equal(np.asarray(open_image(data[:-500])), np.asarray(open_image(data)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded()[:-60], "is a PNG file that is truncated or damaged"),
        (png_with(DAMAGED_PNG["gamma checksum"])[:-60], "is a PNG file that is truncated or damaged"),
        (encoded(format="JPEG")[:-40], "is a JPEG file that is truncated or damaged"),
        (encoded(format="WEBP")[:-300], "is a WEBP file that is truncated or damaged"),
        (
            b"\x89PNG\r\n\x1a\n" + b"rubbish" * 9,
            "is a PNG file that is truncated or damaged",
        ),
        (b"<!DOCTYPE html><html>", r"is not a readable .* \(it is an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer in place of the file; run `git lfs pull`"),
        (b"\0\0\0\x18ftypmp42" + b"\0" * 40, "it is a video"),
    ],
)
def test_what_is_damaged_itself_is_refused_with_a_true_reason(data, words):
    with pytest.raises(DataError, match=words):
        open_image(data)


def test_the_doctor_agrees_and_notes_the_damage(tmp_path):
    for name, data, code in (
        ("gamma.png", png_with(DAMAGED_PNG["gamma checksum"]), "metadata"), ("whole.png", encoded(), ""),
        ("text.png", png_with(DAMAGED_PNG["large text"]), "metadata"), ("cut.png", encoded()[:-60], "truncated"),
        ("page.png", b"<html>", "undecodable"), ("x.jfif", encoded(format="JPEG"), ""), ("no-suffix", encoded(), ""),
        ("y.tif", encoded(format="TIFF"), ""), ("z.jpg", encoded(), "wrong_extension"), ("zero.png", b"", "empty"),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        check = check_image(Place(str(tmp_path / name)), ImageLimits())
        assert (name, check.code) == (name, code)
    (tmp_path / "link.png").symlink_to("nowhere.png")
    check = check_image(Place(str(tmp_path / "link.png")), ImageLimits())
    assert check.code == "missing" and "is a link to 'nowhere.png'" in check.reason


def raw_png(depth, colour, row, key=None, size=16):
    header = struct.pack(">IIBBBBB", size, size, depth, colour, 0, 0, 0)
    rows = zlib.compress((b"\0" + row) * size)
    extra = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key"),
    [
        (16, 0, struct.pack(">H", 300) * 16, struct.pack(">H", 300)),
        (16, 2, struct.pack(">HHH", 1000, 2000, 3000) * 16, struct.pack(">HHH", 1000, 2000, 3000)),
        (8, 2, bytes([1, 2, 3]) * 16, struct.pack(">HHH", 1, 2, 3)),
        (8, 0, bytes([9]) * 16, struct.pack(">H", 9)),
        (4, 0, b"\x33" * 8, struct.pack(">H", 3)),
        (2, 0, b"\x55" * 4, struct.pack(">H", 1)),
        (1, 0, b"\0\0", struct.pack(">H", 0)),
        (1, 0, b"\xff\xff", struct.pack(">H", 1)),
        (16, 4, struct.pack(">HH", 300, 0) * 16, None),
        (16, 6, struct.pack(">HHHH", 1, 2, 3, 0) * 16, None),
    ],
)
def test_transparent_pixels_of_every_depth_are_white(depth, colour, row, key):
    assert open_image(raw_png(depth, colour, row, key)).getpixel((5, 5)) == (255, 255, 255)
    if key:
        dark = np.asarray(open_image(raw_png(depth, colour, row, bytes(len(key) - 1) + b"\x07")))
        assert dark.min() < 255 or row == b"\xff\xff"


def test_deep_greys_and_floats_are_scaled_and_never_all_white():
    ramp = np.linspace(0, 1, 400).reshape(20, 20)
    for values in (ramp, ramp * 255, ramp * 65535, ramp * 1e6):
        grey = np.asarray(open_image(encoded(Image.fromarray(values.astype(np.float32)), "TIFF")))[..., 0]
        assert grey.min() == 0 and grey.max() >= 254 and abs(float(grey.mean()) - 127.5) < 1.5
    deep = Image.fromarray((ramp * 2**31 * 0.9).astype(np.int32))
    assert abs(float(np.asarray(open_image(encoded(deep, "TIFF"))).mean()) - 127.5) < 1.5


def test_cmyk_and_palettes_of_every_kind_open():
    red = Image.new("RGB", (20, 20), (200, 10, 10))
    for data in (encoded(red.convert("CMYK"), "JPEG", quality=95), encoded(red.convert("CMYK"), "TIFF"),
                 encoded(red.convert("P")), encoded(red.convert("P"), "GIF")):  # fmt: skip
        assert np.abs(np.asarray(open_image(data)).astype(int) - (200, 10, 10)).max() < 60


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIF"), (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"), (b"\xff\x0a\x7f", "JXL"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JXL"), (b"BM not a bitmap at all, but a text", ""), (b"P6 hello", ""),
        (b"P5\n# comment", "PPM"), (b"", ""), (b"RIFF\0\0\0\0WAVE", ""),
    ],
)  # fmt: skip
def test_first_bytes_tell_the_format(head, kind):
    assert sniff(head) == kind


@pytest.mark.parametrize(
    ("module", "head", "name"),
    [("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), ("pillow_jxl", b"\xff\x0a\x7f\0", "JXL")],
)
def test_a_format_of_the_extra_names_it_where_it_is_not_installed(monkeypatch, module, head, name):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"is a {name} picture; install the extra .*pip install 'cirray\[photos\]'"):
        open_image(head + b"\0" * 99)


def test_a_format_of_the_extra_is_decoded_where_it_is_installed(monkeypatch):
    def register():
        Image.register_open("HEIF", lambda stream, name: Image.new("RGB", (33, 22), (1, 2, 3)), lambda head: True)

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    try:
        image = open_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99)
    finally:
        Image.OPEN.pop("HEIF", None)
        Image.ID[:] = [kind for kind in Image.ID if kind != "HEIF"]
    assert image.size == (33, 22) and image.getpixel((3, 3)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("module", "format", "suffix"), [("pillow_heif", "HEIF", "heic"), ("pillow_jxl", "JXL", "jxl")]
)
def test_the_extras_own_decoders_read_real_files(module, format, suffix, tmp_path):
    found = pytest.importorskip(module)
    if hasattr(found, "register_heif_opener"):
        found.register_heif_opener()
    flat = Image.new("RGB", (64, 48), (200, 40, 40))
    path = tmp_path / f"a.{format.lower()}"
    path.write_bytes(encoded(flat, format))
    image = open_image(path)
    assert image.size == (64, 48) and np.abs(np.asarray(image).astype(int) - (200, 40, 40)).max() < 12
    assert check_image(Place(str(path)), ImageLimits()).code == ""
