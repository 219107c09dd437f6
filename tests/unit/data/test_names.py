"""Which picture a name in a table means: as written first, normalised on both sides second, ambiguity named."""

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import FolderConfig
from cirray.data.folder import read_folder
from cirray.data.names import NameFinder, name_key

NBSP, NARROW, WIDE, ZERO, HEART = "\u00a0", "\u202f", "\u3000", "\u200b", "\u2764\ufe0f"


def read(root, reference, target="other"):
    row = {"reference": reference, "target": target, "modification": "x"}
    (root / "triplets.jsonl").write_text(json.dumps(row) + "\n")
    return read_folder(FolderConfig(root=str(root)))


def put(root, *names):
    for name in (*names, "other.png"):
        path = root / "gallery" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            Image.new("RGB", (16, 16)).save(stream, "PNG")


@pytest.mark.parametrize(
    "name",
    [
        f"a{NBSP}b.png", " lead.png", f"{NBSP}lead.png", "trail .png", "two  blanks.png", "dots...png", "tab\tin.png",
        f"Screenshot 2026-11-29 at 9.41.05{NARROW}AM.png", "line\nbreak.png", f"{HEART}.png", f"full{WIDE}width.png",
        "ｆｕｌｌ.png", unicodedata.normalize("NFD", "é.png"), "100%25.png", "back\\slash.png", "caf\udce9.png",
        "a.b.c.png", "'quote\".png", "-dash.png", "~tilde.png",
    ],
)  # fmt: skip
def test_a_name_with_the_same_bytes_as_on_disk_is_found(tmp_path, name):
    put(tmp_path, name)
    dataset = read(tmp_path, name)
    (row,) = dataset.triplets
    assert row.reference_id in dataset.images and row.reference_id != "other"
    assert read(tmp_path, name.removesuffix(".png")).triplets[0].reference_id == row.reference_id


@pytest.mark.parametrize(
    ("on_disk", "in_table"),
    [
        (f"a{NBSP}b.png", "a b.png"),
        (f"Screenshot at 9.41{NARROW}AM.png", "Screenshot at 9.41 AM.png"),
        ("a b.png", f"a{NBSP}b.png"),
        ("a b.png", "a%20b.png"),
        ("a%20b.png", "a b.png"),
        (" lead.png", "lead.png"),
        ("trail .png", "trail.png"),
        ("end.png", "end.png. "),
        (unicodedata.normalize("NFD", "Zoë.png"), unicodedata.normalize("NFC", "Zoë.png")),
        (unicodedata.normalize("NFC", "Zoë.png"), unicodedata.normalize("NFD", "Zoë")),
        (f"{HEART}.png", "\u2764.png"),
        ("ｆｕｌｌ.png", "full.png"),
        (f"a{ZERO}b.png", "ab.png"),
        ("IMG_1.PNG", "IMG_1.png"),
        ("IMG_1.png", "IMG_1.JPG"),
        ("sub/x.png", "sub\\x.png"),
        ("sub/x.png", ".\\gallery\\sub\\x.PNG"),
        ("sub/x.png", "./gallery/sub/x.png"),
        ("sub/x.png", "/gallery//sub/./x"),
        (f"a{NBSP}b/x.png", "gallery/a b/x.png"),
        ("caf\udce9.png", "caf%E9.png"),
    ],
)
def test_a_name_that_is_written_otherwise_is_found_as_well(tmp_path, on_disk, in_table):
    put(tmp_path, on_disk)
    assert read(tmp_path, in_table).triplets[0].reference_id != "other"


def test_a_name_as_written_wins_over_a_similar_one(tmp_path):
    put(tmp_path, "a b.png", f"a{NBSP}b.png", "a  b.png")
    for name in ("a b", f"a{NBSP}b", "a  b"):
        assert read(tmp_path, f"{name}.png").triplets[0].reference_id == name


@pytest.mark.parametrize(
    ("files", "name"),
    [(["a b.png", f"a{NBSP}b.png"], "a%20b.png"), (["a.jpg", "a.png"], "a"), (["x.jpg", "x.png"], "x.webp")],
)
def test_an_ambiguous_name_is_refused_with_what_it_may_be(tmp_path, files, name):
    put(tmp_path, *files)
    with pytest.raises(DataError, match="line 1: reference image .* may be .* or .*; write the name as on disk"):
        read(tmp_path, name)


def test_letters_keep_their_case_and_an_absent_name_stays_absent(tmp_path):
    put(tmp_path, "Red.png")
    for name in ("red.png", "Re d.png", "Redd"):
        with pytest.raises(DataError, match="is not in 'gallery'"):
            read(tmp_path, name)


def test_several_targets_are_each_found_as_written(tmp_path):
    put(tmp_path, f"a{NBSP}b.png", "a b.png")
    row = {"reference": "other", "target": [f"a{NBSP}b", "a b"], "modification": "x"}
    (tmp_path / "queries.jsonl").write_text(json.dumps(row) + "\n")
    assert read_folder(FolderConfig(root=str(tmp_path))).queries[0].target_ids == (f"a{NBSP}b", "a b")


def test_a_key_of_a_key_is_itself():
    for name in (f" A{NBSP}b .JPG", "./x\\y%20z.png ", "caf%E9", f"{HEART}{ZERO}"):
        assert name_key(name_key(name)) == name_key(name)


def test_paths_of_a_folder_may_stand_in_front():
    finder = NameFinder({"a/b": "a/b.jpg"}, [Path("/data/my pictures")])
    for name in ("/data/my pictures/a/b.jpg", "my pictures/a/b", f"my{NBSP}pictures/a/b.JPG", "a/b.png"):
        assert finder.find(name) == ("a/b",)
    assert finder.find("data/a/b") == ()


@pytest.mark.parametrize(
    "name",
    [
        "D:\\Fotos\\gallery\\sub\\x.PNG",
        "/Users/me/gallery/sub/x",
        "file:///Users/me/gallery/sub/x.png",
        "C:/a b/gallery/sub/x",
    ],
)
def test_a_path_of_another_machine_means_what_stands_below_the_folders_name(tmp_path, name):
    put(tmp_path, "sub/x.png")
    assert read(tmp_path, name).triplets[0].reference_id == "sub/x"
    with pytest.raises(DataError, match="is not in 'gallery'"):
        read(tmp_path, name.replace("gallery", "album"))


def test_a_data_set_of_images_alone_may_be_named_by_its_whole_path(tmp_path):
    for name in ("a.png", "other.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    assert read(tmp_path, str(tmp_path / "a.png")).triplets[0].reference_id == "a"
