"""A folder beside what it was: what is the same, renamed, new, changed or gone, and which files are read for that."""

import os
import time

import pytest

from cirray.data.changes import Seen, compare, stamp_of
from cirray.data.listing import list_pictures


@pytest.fixture
def folder(tmp_path):
    for name in ("a.jpg", "b.jpg", "c/d.jpg", "e.jpg"):
        write(tmp_path / name, name.encode())
    return tmp_path


def write(path, data, age=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (time.time() - age,) * 2)


class Reader:
    """Digests of paths, and which paths were asked for."""

    def __init__(self):
        self.read = []

    def __call__(self, paths):
        self.read += [os.path.basename(path) for path in paths]
        return [open(path, "rb").read().decode() if os.access(path, os.R_OK) else "" for path in paths]


def look(folder, before=(), reader=None):
    return compare(list_pictures(folder).pictures, before, reader or Reader())


@pytest.fixture
def old(monkeypatch):
    """Files count as settled at once: their last change is not waited for."""
    monkeypatch.setattr("cirray.data.changes._FRESH_NS", 0)


def test_an_untouched_folder_is_listed_and_no_file_is_read(folder, old):
    before, reader = look(folder).rows, Reader()
    again = look(folder, before, reader)
    assert again.rows == before and reader.read == []
    assert again.told() == "4 pictures: 4 as before"


def test_each_kind_of_change_is_told_and_only_touched_files_are_read(folder, old):
    before, reader = look(folder).rows, Reader()
    write(folder / "a.jpg", b"other")
    (folder / "b.jpg").unlink()
    os.rename(folder / "c" / "d.jpg", folder / "c" / "z.jpg")
    write(folder / "new.jpg", b"new")
    now = look(folder, before, reader)
    assert now.told() == "4 pictures: 1 as before, 1 renamed, 1 new, 1 changed, 1 gone"
    assert (now.renamed, now.new, now.changed, now.gone) == (("c/z.jpg",), ("new.jpg",), ("a.jpg",), ("b.jpg",))
    assert sorted(reader.read) == ["a.jpg", "new.jpg", "z.jpg"]
    assert {row.name: row.digest for row in now.rows} == {row.name: row.digest for row in look(folder).rows}


def test_other_bytes_of_the_same_size_under_the_old_date_are_found(folder, old):
    before, path = look(folder).rows, folder / "a.jpg"
    found = path.stat()
    path.write_bytes(b"x.jpg")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert look(folder, before).changed == ("a.jpg",)


def test_a_copied_or_touched_file_with_the_same_bytes_is_the_same(folder, old):
    before, reader = look(folder).rows, Reader()
    os.utime(folder / "a.jpg")
    assert look(folder, before, reader).told() == "4 pictures: 4 as before" and reader.read == ["a.jpg"]


def test_a_file_that_has_just_changed_is_read_again_the_next_time(folder):
    assert stamp_of(str(folder / "a.jpg")) == "" and stamp_of(str(folder / "none.jpg")) == ""
    before, reader = look(folder).rows, Reader()
    (folder / "a.jpg").write_bytes(b"x.jpg")
    assert look(folder, before, reader).changed == ("a.jpg",) and len(reader.read) == 4


def test_a_file_that_could_not_be_read_is_tried_again(folder, old):
    before = [row._replace(digest="") if row.name == "a.jpg" else row for row in look(folder).rows]
    reader = Reader()
    assert look(folder, before, reader).changed == ("a.jpg",) and reader.read == ["a.jpg"]


def test_one_of_two_equal_files_that_goes_is_gone_and_a_second_copy_is_new(folder, old):
    write(folder / "twin.jpg", b"a.jpg")
    before = look(folder).rows
    (folder / "twin.jpg").unlink()
    assert look(folder, before).told() == "4 pictures: 4 as before, 1 gone"
    for name in ("twin1.jpg", "twin2.jpg"):
        write(folder / name, b"a.jpg")
    now = look(folder, before)
    assert (now.renamed, now.new, now.gone) == (("twin1.jpg",), ("twin2.jpg",), ())


def test_at_the_first_time_everything_is_new(folder):
    assert look(folder).told() == "4 pictures: 4 new"
    assert compare([], [Seen("a", "1", "x")], Reader()).told() == "0 pictures: 1 gone"
