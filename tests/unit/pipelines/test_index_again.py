"""A folder that is indexed again: only what is new is encoded, and the result is the one of a new index."""

import logging
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_service

import cirray.pipelines.search.parts as parts
from cirray.core import unfinished
from cirray.core.artifacts import read_manifest
from cirray.core.contents import MANIFEST, MARKER, SEEN
from cirray.core.errors import ArtifactError, DataError
from cirray.index.store import open_index
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.rows import Rows


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_service.write_checkpoint(tmp_path_factory.mktemp("again") / "checkpoint")


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A folder with 12 pictures, one of them broken, and its index; copied by every test."""
    home = tmp_path_factory.mktemp("made")
    folder = tiny_service.write_pictures(home / "photos", count=11)
    run_index(run(checkpoint, home))
    return folder.parent


@pytest.fixture
def home(made, tmp_path):
    home = shutil.copytree(made, tmp_path / "home")
    manifest = home / "index" / MANIFEST
    manifest.write_text(manifest.read_text().replace(str(made), str(home)))
    return home


@pytest.fixture
def encoded(monkeypatch):
    """The ids that are decoded."""
    seen, load = [], parts.FolderSource.load
    monkeypatch.setattr(
        parts.FolderSource, "load", lambda self, ids, places: seen.extend(ids) or load(self, ids, places)
    )
    return seen


def run(checkpoint, home, out="index", **fields):
    settings = {"checkpoint": checkpoint, "images": str(Path(home) / "photos"), "out": str(Path(home) / out)}
    return IndexRun(**{**settings, "batch": 4, "shard": 5, **fields})


def contents(index):
    """Every file that counts."""
    files = [path for path in Path(index).rglob("*") if path.is_file() and path.name not in (MANIFEST, MARKER, SEEN)]
    return {path.relative_to(index): path.read_bytes() for path in files}


def assert_as_new(checkpoint, home, manifest, **fields):
    fresh = run_index(run(checkpoint, home, f"fresh-{random.random()}", **fields))
    assert contents(home / "index") == contents(fresh.config["out"])
    for name in ("digest", "inputs", "counts", "identity"):
        assert getattr(manifest, name) == getattr(fresh, name)
    assert read_manifest(home / "index") == manifest
    assert not (home / "index.partial").exists() and not (home / "index.former").exists()


def change(folder):
    """One picture renamed, two new (one broken), one changed, two gone."""
    (folder / "plain" / "00.png").unlink()
    (folder / "plain" / "broken.jpg").unlink()
    os.rename(folder / "plain" / "02.png", folder / "a renamed.png")
    (folder / "plain" / "04.png").write_bytes(tiny_service.picture(204))
    (folder / "new.jpg").write_bytes(tiny_service.picture(205, (300, 200), "JPEG"))
    (folder / "not.jpg").write_bytes(b"\xff\xd8\xff no picture either")


def test_only_new_and_changed_pictures_are_encoded_and_the_index_is_as_a_new_one(home, checkpoint, encoded, caplog):
    caplog.set_level(logging.INFO)
    change(home / "photos")
    manifest = run_index(run(checkpoint, home))
    assert encoded == ["new", "not", "plain/04"]
    assert manifest.counts == {"images": 11, "rejected": 1}
    told = [record.getMessage() for record in caplog.records if "pictures:" in record.getMessage()]
    assert told == [f"{home}/photos: 12 pictures: 8 as before, 1 renamed, 2 new, 1 changed, 2 gone"]
    assert_as_new(checkpoint, home, manifest)


def test_an_unchanged_folder_loads_no_model_and_leaves_the_index_alone(home, checkpoint, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    before = contents(home / "index")
    monkeypatch.setattr("cirray.pipelines.search.making.make_index", None)
    manifest = run_index(run(checkpoint, home))
    assert contents(home / "index") == before and manifest.counts == {"images": 11, "rejected": 1}
    assert f"{home}/photos: 12 pictures: 12 as before" in caplog.text


def test_files_are_read_once_and_then_only_looked_at(home, checkpoint, monkeypatch):
    read = []
    real = parts.picture_digest
    monkeypatch.setattr("cirray.pipelines.data.datasets.picture_digest", lambda data: read.append(1) or real(data))
    monkeypatch.setattr("cirray.data.changes._FRESH_NS", 0)
    run_index(run(checkpoint, home))
    assert len(read) == 12  # a copied folder: other dates
    run_index(run(checkpoint, home))
    assert len(read) == 12


@pytest.mark.parametrize("seed", [0, 1])
def test_any_row_of_changes_gives_the_index_of_a_new_run(home, checkpoint, seed):
    rng, folder = random.Random(seed), home / "photos"
    for _ in range(4):
        for _ in range(rng.randint(1, 4)):
            found = sorted(path for path in folder.rglob("*") if path.is_file())
            some = rng.choice(found)
            action = rng.choice(["add", "drop", "edit", "move", "copy", "break", "clash"])
            if action in ("add", "edit"):
                path = folder / f"{rng.randint(0, 99)}.png" if action == "add" else some
                path.write_bytes(tiny_service.picture(rng.randint(0, 999), (40 + rng.randint(0, 200), 32)))
            elif action == "drop" and len(found) > 3:
                some.unlink()
            elif action == "move":
                os.rename(some, some.with_name(f"moved {rng.randint(0, 99)}{some.suffix}"))
            elif action == "copy":
                shutil.copy(some, folder / f"copy {rng.randint(0, 99)}{some.suffix}")
            elif action == "break":
                some.write_bytes(some.read_bytes()[:70])
            elif action == "clash":
                shutil.copy(some, some.with_suffix(".webp"))  # two files of one stem: both ids get their suffix
        manifest = run_index(run(checkpoint, home))
        assert_as_new(checkpoint, home, manifest)


def test_a_killed_run_goes_on_even_when_the_folder_has_changed_once_more(home, checkpoint, encoded, monkeypatch):
    for number in range(12):
        (home / "photos" / f"more {number:02}.png").write_bytes(tiny_service.picture(300 + number))
    encode, calls = parts.PartEncoder._vectors, []

    def die(self, loaded):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, loaded)

    monkeypatch.setattr(parts.PartEncoder, "_vectors", die)
    with pytest.raises(KeyboardInterrupt):
        run_index(run(checkpoint, home, threads=1))
    assert read_manifest(home / "index").counts == {"images": 11, "rejected": 1}
    monkeypatch.setattr(parts.PartEncoder, "_vectors", encode)
    (home / "photos" / "more 00.png").unlink()
    (home / "photos" / "more 03.png").write_bytes(tiny_service.picture(399))
    encoded.clear()
    manifest = run_index(run(checkpoint, home))
    assert encoded[0] == "more 03" and not {"more 01", "more 02", "more 04"} & set(encoded)
    assert_as_new(checkpoint, home, manifest)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("moment", range(4))
def test_killed_while_it_takes_the_place_of_the_former_the_next_run_sets_it_right(
    home, checkpoint, monkeypatch, exchanges, moment
):
    if not exchanges:
        monkeypatch.setattr(unfinished, "_exchanged", lambda one, other: False)
    change(home / "photos")
    calls = []

    def dying(real):
        def call(*args, **fields):
            calls.append(1)
            if len(calls) > moment:
                raise KeyboardInterrupt
            return real(*args, **fields)

        return call

    before = contents(home / "index")
    with monkeypatch.context() as patched:
        patched.setattr(unfinished.os, "replace", dying(os.replace) if not exchanges else os.replace)
        patched.setattr(unfinished.shutil, "rmtree", dying(shutil.rmtree))
        patched.setattr("cirray.core.storage.write_bytes", quiet_write)
        try:
            run_index(run(checkpoint, home))
        except KeyboardInterrupt:
            assert not (home / "index").exists() or read_manifest(home / "index").digest
    manifest = run_index(run(checkpoint, home))
    assert contents(home / "index") != before
    assert_as_new(checkpoint, home, manifest)


def quiet_write(uri, data):
    Path(uri).parent.mkdir(parents=True, exist_ok=True)
    Path(uri).write_bytes(data)


def test_an_index_that_is_open_goes_on_with_its_own_pictures_and_names(home, checkpoint):
    held = open_index(home / "index")
    shown = {name: held.picture(name) for name in held.ids}
    sizes = [len(picture) for picture in shown.values()]
    change(home / "photos")
    run_index(run(checkpoint, home))
    assert {name: held.picture(name) for name in held.ids} == shown and min(sizes) > 0
    assert [name for name, _ in held.originals.rows][-1] == "plain/10.png" and len(held.originals.rows) == 11
    query = np.asarray(held.search_index.search(np.ones((1, 8), np.float32), 3)[1])
    assert np.isfinite(query).all()
    assert "new" in open_index(home / "index").ids and "new" not in held.ids


def test_another_model_encodes_everything_again_and_says_so(home, checkpoint, encoded, caplog, tmp_path):
    caplog.set_level(logging.INFO)
    other = tiny_service.write_checkpoint(tmp_path / "other", seed=5)
    manifest = run_index(run(other, home))
    assert len(encoded) == 12 and "every picture is encoded again" in caplog.text
    assert "its model has changed" in caplog.text
    assert_as_new(other, home, manifest)


@pytest.mark.parametrize("damage", ["tokens.npy", SEEN])
def test_a_damaged_index_is_made_anew(home, checkpoint, encoded, caplog, damage):
    caplog.set_level(logging.INFO)
    (home / "index" / damage).write_bytes(b"[")
    (home / "photos" / "new.png").write_bytes(tiny_service.picture(99))
    manifest = run_index(run(checkpoint, home))
    assert len(encoded) == 13 and "every picture is encoded again" in caplog.text
    assert_as_new(checkpoint, home, manifest)


def test_other_settings_at_the_same_place_are_refused_and_nothing_is_lost(home, checkpoint):
    before = contents(home / "index")
    with pytest.raises(ArtifactError, match="thumbnail_size: 256 there, 64 now"):
        run_index(run(checkpoint, home, thumbnail_size=64))
    assert contents(home / "index") == before


def test_the_index_of_another_folder_is_not_replaced_but_a_moved_folder_is_the_same(home, checkpoint, encoded):
    shutil.copytree(home / "photos", home / "second" / "photos")
    with pytest.raises(ArtifactError, match=r"is the index of another folder, '.*home/photos'\. Choose"):
        run_index(run(checkpoint, home / "second", out="../index"))
    shutil.rmtree(home / "photos")
    manifest = run_index(run(checkpoint, home / "second", out="../index"))
    assert encoded == [] and manifest.extra["originals"] == str(home / "second" / "photos")
    path, _ = open_index(home / "index").originals.find(0)
    assert path.is_file()


def test_a_folder_whose_pictures_are_all_gone_or_broken_keeps_its_index(home, checkpoint):
    before = contents(home / "index")
    for path in (home / "photos").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="No image was left to index"):
        run_index(run(checkpoint, home))
    shutil.rmtree(home / "photos" / "plain")
    shutil.rmtree(home / "photos" / "a b")
    with pytest.raises(DataError, match="holds no image"):
        run_index(run(checkpoint, home))
    assert contents(home / "index") == before


def test_a_file_that_changes_between_the_look_and_the_decoding_is_left_out_with_a_reason(home, checkpoint, monkeypatch):
    path, load = home / "photos" / "new.png", parts.FolderSource.load
    path.write_bytes(tiny_service.picture(98))

    def late(self, ids, places):
        path.write_bytes(tiny_service.picture(99))
        return load(self, ids, places)

    with monkeypatch.context() as patched:
        patched.setattr(parts.FolderSource, "load", late)
        manifest = run_index(run(checkpoint, home))
    assert dict(manifest.extra["rejected"])["new"].startswith("The file changed while the folder was indexed")
    again = run_index(run(checkpoint, home))
    assert again.counts == {"images": 12, "rejected": 1}
    assert_as_new(checkpoint, home, again)


def resident():
    """Bytes of this process's memory, mapped files among them."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_joining_the_parts_takes_no_memory_that_grows_with_the_pictures(tmp_path):
    many, seen = 40, list[int]()

    class Made:
        keys = [str(number) for number in range(64 * many)]
        rejected, has_patches = [], True

        def blocks(self, name):
            for number in range(many):
                seen.append(resident())
                yield np.full((64, 32 if name == "patches.npy" else 1, 1024), number, np.float16)

    Rows([Made()]).stack(Made.keys, tmp_path)  # 168 MB of patches
    assert max(seen) - seen[0] < 60e6
    written = np.load(tmp_path / "patches.npy", mmap_mode="r")
    assert written.shape == (64 * many, 32, 1024) and [int(row[0, 0]) for row in written[::64]] == list(range(many))
