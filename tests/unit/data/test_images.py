import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import ImageLimits, TransformConfig
from cirray.data.images import open_image
from cirray.data.pixels import to_rgb
from cirray.transforms import build_transform


def encoded(image, format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def picture(size=(40, 30), mode="RGB"):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)


def flat_png(width, height):
    """A PNG header that promises many pixels in few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width // 8 + 2) * min(height, 10)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_every_format_opens_as_rgb_from_path_bytes_and_stream(format, tmp_path):
    data = encoded(picture(), format)
    path = tmp_path / "image"
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        image = open_image(source)
        assert image.mode == "RGB" and image.size == (40, 30) and image.info == {}


@pytest.mark.parametrize(
    ("format", "what"), [("ICO", "an icon"), ("PDF", "a PDF"), ("EPS", "PostScript"), ("TGA", "no")]
)
def test_other_formats_are_refused_though_pillow_could_read_them(format, what):
    with pytest.raises(DataError, match=f"not a readable JPEG/PNG/WEBP/GIF/BMP/TIFF/AVIF/.* file .*{what}"):
        open_image(encoded(picture(), format))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16", "CMYK", "YCbCr", "I", "F", "HSV", "LAB", "PA"])
def test_every_mode_becomes_rgb(mode):
    if mode in ("I;16", "I", "F", "PA", "LAB"):
        image = {"PA": lambda: Image.new("PA", (20, 20)), "LAB": lambda: Image.new("LAB", (20, 20))}.get(
            mode, lambda: Image.new(mode, (20, 20), 200)
        )()
        assert to_rgb(image).mode == "RGB"
        return
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    image = picture().convert(mode)
    assert (to_rgb(image) if mode == "HSV" else open_image(encoded(image, format))).mode == "RGB"


def test_an_opened_image_is_taken_as_it_is_and_not_changed():
    given = Image.new("RGBA", (12, 10), (10, 20, 30, 255))
    found = open_image(given)
    assert found.mode == "RGB" and found.size == (12, 10) and found.getpixel((0, 0)) == (10, 20, 30)
    assert given.mode == "RGBA"
    with pytest.raises(DataError, match="uploaded image"):
        open_image(given, ImageLimits(max_pixels=100))


def test_sixteen_bit_grey_keeps_its_brightness():
    values = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    grey = np.asarray(open_image(encoded(Image.fromarray(values))))[..., 0]
    assert grey.min() == 0 and grey.max() == 255 and abs(float(grey.mean()) - 127.5) < 1
    assert np.asarray(to_rgb(Image.fromarray(np.full((9, 9), 0.5, dtype=np.float32)))).max() == 128


def test_transparent_pixels_are_white_and_opaque_ones_keep_their_colour():
    image = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    image.putpixel((3, 3), (255, 0, 0, 255))
    for source in (encoded(image), encoded(image.convert("P"), transparency=0)):
        assert open_image(source).getpixel((10, 10)) == (255, 255, 255)
    assert open_image(encoded(image)).getpixel((3, 3)) == (255, 0, 0)


def test_exif_rotation_is_applied_and_the_rest_dropped():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "secret"
    image = open_image(encoded(picture((40, 30)), "JPEG", exif=exif))
    assert image.size == (30, 40) and not image.getexif()


def test_only_the_first_frame_of_an_animation_is_read():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    for format in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        red, _, blue = open_image(data).getpixel((8, 8))
        assert red > 250 and blue < 5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"no image at all", "not a readable"),
        (encoded(picture())[:200], "truncated or damaged"),
        (encoded(picture(), "JPEG")[:300], "truncated or damaged|not a readable"),
        (encoded(Image.new("L", (1, 1))), "at least 8 pixels"),
        (encoded(Image.new("L", (8, 400))), "aspect ratio of at most 20:1"),
        (flat_png(20_000, 20_000), "pixels"),
        (flat_png(7_000, 7_000), "at most 40,000,000 pixels"),
    ],
    ids=["empty", "garbage", "cut png", "cut jpeg", "one pixel", "strip", "bomb", "large"],
)
def test_bad_bytes_are_refused_in_one_sentence(data, words):
    with pytest.raises(DataError, match=words) as caught:
        open_image(data, name="holiday.jpg")
    assert "'holiday.jpg'" in str(caught.value) and "\n" not in str(caught.value)


def test_a_long_strip_is_refused_before_it_costs_anything():
    begin = time.perf_counter()
    with pytest.raises(DataError):
        open_image(encoded(Image.new("1", (20_000, 1))))
    assert time.perf_counter() - begin < 0.5


def test_missing_files_folders_and_long_uploads_are_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="not a file"):
        open_image(tmp_path)
    data = encoded(picture())
    with pytest.raises(DataError, match="larger than 100 bytes"):
        open_image(io.BytesIO(data), ImageLimits(max_bytes=100))
    assert open_image(data, ImageLimits(max_bytes=len(data))).size == (40, 30)


def test_damaged_files_give_an_image_or_a_data_error_and_nothing_else():
    rng = np.random.default_rng(1)
    refused = 0
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        whole = np.frombuffer(encoded(picture(), format), dtype=np.uint8)
        for _ in range(80):
            data = whole.copy()
            data[rng.integers(0, len(data), 4)] = rng.integers(0, 256, 4)
            cut = data[: rng.integers(1, len(data) + 1)] if rng.integers(2) else data
            try:
                assert open_image(cut.tobytes()).mode == "RGB"
            except DataError:
                refused += 1
    assert 100 < refused < 400


def test_large_jpegs_are_decoded_smaller_but_never_below_the_draft_side():
    data = encoded(Image.new("RGB", (2600, 1300)), "JPEG")
    assert open_image(data, ImageLimits(draft_side=300)).size == (650, 325)
    assert open_image(data).size == (2600, 1300)


def test_every_mode_gives_square_uint8_pixels_and_its_own_digest():
    digests = set()
    for mode in ("squash", "center_crop", "target_pad"):
        transform = build_transform(TransformConfig(size=24, mode=mode))
        for size in ((24, 24), (37, 24), (9, 100), (100, 9), (300, 200)):
            pixels = transform(picture(size))
            assert pixels.shape == (24, 24, 3) and pixels.dtype == np.uint8
        assert build_transform(TransformConfig(size=24, mode=mode)).digest == transform.digest
        digests.add(transform.digest)
    digests.add(build_transform(TransformConfig(size=24, mode="squash", mean=(0.5, 0.5, 0.5))).digest)
    assert len(digests) == 4


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = picture((48, 48))
    for mode in ("squash", "center_crop", "target_pad"):
        assert np.array_equal(build_transform(TransformConfig(size=48, mode=mode))(image), np.asarray(image))


def test_target_pad_keeps_what_a_centre_crop_cuts_off():
    image = Image.new("RGB", (200, 100))
    image.paste((255, 0, 0), (25, 0, 35, 100))
    crop, pad = (build_transform(TransformConfig(size=80, mode=mode)) for mode in ("center_crop", "target_pad"))
    assert crop(image)[:, :, 0].max() == 0
    padded = pad(image)
    assert padded[:, :, 0].max() > 200
    assert padded[:2].max() == 0
    near = picture((124, 100))
    assert np.array_equal(pad(near), crop(near))
