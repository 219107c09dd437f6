"""Which files of a folder are pictures, what they are called, and what is told of the others."""

import io
import os
import random

import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import FolderConfig
from cirray.data.folder import read_folder
from cirray.data.images import open_image
from cirray.data.listing import list_pictures, name_text, picture_ids
from cirray.data.places import Place


def png(colour=(255, 0, 0)):
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return stream.getvalue()


def put(folder, *names, data=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png() if data is None else data)


def names(folder):
    return [name for name, _ in list_pictures(folder).pictures]


ODD = ["a.jfif", "a2.jpe", "b.mpo", "c.tif", "c2.tiff", "d.avif", "e.HEIC", "f.jxl", "no-suffix", "22.05", "x.unknown"]


def test_pictures_are_found_by_content_whatever_their_names(tmp_path):
    put(tmp_path, *ODD, "a picture.txt", "IMG_1.JPG")
    assert sorted(names(tmp_path)) == sorted([*ODD, "a picture.txt", "IMG_1.JPG"])
    dataset = read_folder(FolderConfig(root=str(tmp_path)))
    assert {"a", "a2", "e", "no-suffix", "22.05", "x.unknown", "a picture.txt", "IMG_1"} <= set(dataset.images)
    assert all(open_image(dataset.images.path(image)).size == (16, 16) for image in dataset.images)


def test_what_does_not_decode_is_still_among_the_pictures_so_that_it_is_named(tmp_path):
    put(tmp_path, "broken.heic", "photo.cr2", "download", "x.bin2", "drawing.svg", data=b"<html>404")
    put(tmp_path, "zero.jpg", "zero", data=b"")
    assert sorted(names(tmp_path)) == [
        "broken.heic",
        "download",
        "drawing.svg",
        "photo.cr2",
        "x.bin2",
        "zero",
        "zero.jpg",
    ]


def test_foreign_and_system_files_are_left_out_and_counted(tmp_path):
    put(tmp_path, "one.jpg")
    put(tmp_path, "t.csv", "a.json", "README", "Thumbs.db", "desktop.ini", "v.mp4", "note.TXT", data=b"text")
    put(tmp_path, ".DS_Store", "._one.jpg", ".hidden.png", "__MACOSX/one.jpg", ".git/x.png", "@eaDir/one.jpg")
    found = list_pictures(tmp_path)
    assert [name for name, _ in found.pictures] == ["one.jpg"] and len(found.aside) == 10
    (note,) = found.notes()
    assert note.startswith("10 files left out") and "'.DS_Store'" in note
    assert read_folder(FolderConfig(root=str(tmp_path))).notes == (note,)


def test_the_layouts_own_tables_are_no_stray_files(tmp_path):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "triplets.csv").write_text("reference,target,modification\na,b,x\n")
    assert read_folder(FolderConfig(root=str(tmp_path))).notes == ()


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        (["a.jpg", "b.png"], ["a", "b"]),
        (["a.jpg", "a.png", "a.jpg.png"], ["a.jpg", "a.png", "a.jpg.png"]),
        (["a.jpg", "a.jpg.png"], ["a", "a.jpg.png"]),
        (["22.05.jpg", "22.06.jpg", "22.05"], ["22.05.jpg", "22.06", "22.05"]),
        (["a", "a.jpg"], ["a", "a.jpg"]),
        (["a.JPG", "a.jpg"], ["a.JPG", "a.jpg"]),
        (["A.jpg", "a.jpg"], ["A", "a"]),
        (["x/a.jpg", "y/a.png"], ["x/a", "y/a"]),
        (["v1.2", "v1.3"], ["v1.2", "v1.3"]),
    ],
)
def test_every_picture_has_its_own_id_whatever_the_order(given, ids):
    assert picture_ids(given) == ids
    shuffled = list(given)
    random.Random(3).shuffle(shuffled)
    assert dict(zip(shuffled, picture_ids(shuffled), strict=True)) == dict(zip(given, ids, strict=True))


def test_ids_stay_unique_among_every_set_of_suffixes_upon_suffixes():
    rng, parts = random.Random(0), ["", ".jpg", ".png", ".JPG", ".05", ".jpg.png", ".png.jpg", ".jpg.jpg"]
    for _ in range(300):
        given = list({rng.choice("ab") + rng.choice(parts) + rng.choice(parts) for _ in range(rng.randint(1, 12))})
        assert len(set(picture_ids(given))) == len(given)


def test_a_name_that_stands_twice_is_refused():
    with pytest.raises(DataError, match="Two images are called 'caf%E9.jpg'"):
        picture_ids(["caf%E9.jpg", "b", "caf%E9.jpg"])


def test_names_that_are_not_utf8_become_text_and_still_open(tmp_path):
    raw = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(raw, "wb") as stream:
        stream.write(png((0, 0, 255)))
    dataset = read_folder(FolderConfig(root=str(tmp_path)))
    assert dataset.images.ids == ("caf%E9",)
    text = dataset.images.place("caf%E9").text()
    assert text.encode() and Place.parse(text) == dataset.images.place("caf%E9")
    assert open_image(dataset.images.path("caf%E9")).getpixel((3, 3)) == (0, 0, 255)
    assert name_text("a/é.jpg") == "a/é.jpg"


def test_links_are_followed_and_loops_end(tmp_path):
    put(tmp_path / "elsewhere", "far.png")
    put(tmp_path / "root" / "sub", "near.png")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "file.png").symlink_to(tmp_path / "elsewhere" / "far.png")
    (tmp_path / "root" / "sub" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "self").symlink_to("self")
    found = list_pictures(tmp_path / "root")
    assert [name for name, _ in found.pictures] == ["file.png", "self", "link/far.png", "sub/near.png"]
    assert found.closed == [("sub/up", "it is a link back to a folder above it")]
    assert "the folder 'sub/up' was left out" in found.notes()[-1]


def test_a_dangling_link_is_a_picture_that_is_not_there(tmp_path):
    (tmp_path / "gone.jpg").symlink_to("/nowhere/at/all.jpg")
    assert names(tmp_path) == ["gone.jpg"]
    with pytest.raises(DataError, match="gone.jpg' is a link to '/nowhere/at/all.jpg', where there is no file"):
        open_image(tmp_path / "gone.jpg")


@pytest.mark.timeout(20)
def test_a_pipe_is_named_and_never_waited_for(tmp_path):
    for name in ("pipe.jpg", "pipe", "pipe.txt"):
        os.mkfifo(tmp_path / name)
    found = list_pictures(tmp_path)
    assert [name for name, _ in found.pictures] == ["pipe", "pipe.jpg"] and found.aside == ["pipe.txt"]
    for _, path in found.pictures:
        with pytest.raises(DataError, match="is not a file"):
            open_image(path)


def test_a_folder_that_may_not_be_listed_is_told(tmp_path, monkeypatch):
    put(tmp_path, "a.png", "closed/b.png")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    dataset = read_folder(FolderConfig(root=str(tmp_path)))
    assert dataset.images.ids == ("a",)
    assert dataset.notes == ("the folder 'closed' was left out: Permission denied",)


def test_a_file_that_may_not_be_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    from pathlib import Path

    put(tmp_path, "a.png")

    def denied(self, *arguments, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match="a.png' cannot be read: Permission denied"):
        open_image(tmp_path / "a.png")
