"""A folder as people have it: some pictures broken in every way, odd ones that are fine, and names of any kind."""

import json
import os

import pytest
import tiny_service
from PIL import Image

from cirray.cli.main import main
from cirray.index.store import open_index

FINE = {
    "sixteen.png": ("I;16", "PNG"), "cmyk.jpg": ("CMYK", "JPEG"), "palette.gif": ("P", "GIF"),
    "clear.png": ("RGBA", "PNG"), "grey.tif": ("L", "TIFF"), "bits.bmp": ("1", "BMP"),
}  # fmt: skip
NAMES = (
    "grün ö.png", "日本語/写真.png", "emoji 😀.png", "e\u0301.png", "é.png", "a'b\"c.png", "new\nline.png", "#?%41.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 good pictures, odd ones, and 37 that are broken."""
    folder = tmp_path_factory.mktemp("broken") / "photos"
    for number in range(300):
        path = folder / f"{number % 7}" / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_service.picture(number))
    for name, (mode, kind) in FINE.items():
        Image.new("RGB", (60, 40), "teal").convert(mode.split(";")[0]).convert(mode).save(folder / name, kind)
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    frames[0].save(folder / "moving.webp", save_all=True, append_images=frames[1:])
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(tiny_service.picture(hash(name) % 1000))
    (folder / "x.jpg").mkdir()
    (folder / "x.jpg" / "inside.png").write_bytes(tiny_service.picture(5))
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as stream:
        stream.write(tiny_service.picture(6))
    break_some(folder)
    return folder


def break_some(folder):
    whole = tiny_service.picture(1, (300, 200), "JPEG")
    for number in range(20):
        (folder / f"cut {number:02}.jpg").write_bytes(whole[: 700 + number])
    for number in range(8):
        (folder / f"empty {number}.jpg").write_bytes(b"")
    for number in range(6):
        (folder / f"page {number}.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    Image.new("1", (20_000, 10_000)).save(folder / "huge.png")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")


def test_the_broken_ones_are_counted_and_listed_once_and_the_others_indexed(folder, tmp_path, capfd):
    checkpoint = tiny_service.write_checkpoint(tmp_path / "checkpoint")
    out = tmp_path / "index"
    words = ["index", f"checkpoint={checkpoint}", f"images={folder}", f"out={out}", f"root={tmp_path}"]
    assert main(words) == 3
    told = capfd.readouterr()
    assert "(317 images, 37 rejected)" in told.out
    assert len(told.out.splitlines()) <= 6 and f"all 37 are listed in {out}/rejected.json" in told.out
    assert told.err.count("rejected") + told.err.count("truncated") == 0
    listed = dict(json.loads((out / "rejected.json").read_text()))
    assert len(listed) == 37
    for name, reason in (
        ("cut 03", "truncated or damaged"), ("empty 0", r"is empty (0 bytes)"), ("page 1", "it is an HTML page"),
        ("huge", "more than 40,000,000 pixels"), ("loop", "is a link to 'loop.jpg'"), ("gone", "is a link to 'nowh"),
    ):  # fmt: skip
        assert reason in listed[name]
    gallery = open_index(out)
    assert set(gallery.ids) >= {name.rpartition(".")[0] for name in (*FINE, *NAMES)} | {
        "caf%E9",
        "x.jpg/inside",
        "moving",
    }
    assert main(words) == 3  # again: they are tried, told and counted as at first
    assert "(317 images, 37 rejected)" in capfd.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_one_of_the_rejected(folder, tmp_path):
    path = tmp_path / "photos" / "a.png"
    path.parent.mkdir()
    path.write_bytes(tiny_service.picture(1))
    (path.parent / "b.png").write_bytes(tiny_service.picture(2))
    path.chmod(0)
    checkpoint = tiny_service.write_checkpoint(tmp_path / "checkpoint")
    words = ["index", f"checkpoint={checkpoint}", f"images={path.parent}", f"out={tmp_path / 'i'}", f"root={tmp_path}"]
    assert main(words) == 3
    assert "Permission denied" in (tmp_path / "i" / "rejected.json").read_text()
