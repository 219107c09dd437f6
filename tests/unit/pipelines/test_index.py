import json
import os
import runpy
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import cirray.pipelines.search.index as stage
import cirray.pipelines.search.making as making
import cirray.pipelines.search.parts as parts
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError, IndexMismatchError
from cirray.data.config import DataConfig, FolderConfig
from cirray.data.pixels import thumbnail
from cirray.index.store import open_index
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.parts import Part
from cirray.pipelines.search.rows import PartRows, Rows

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_service.py")))
REJECTED = (("plain/broken", "damaged"),)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def features(tiny, tmp_path_factory):
    return TINY.write_features(tmp_path_factory.mktemp("f") / "features", tiny.images, tiny.checkpoint, REJECTED)


def run(tiny, out, **fields):
    return IndexRun(**{"checkpoint": tiny.checkpoint, "images": str(tiny.images), "out": str(out), **fields})


def tokens(uri):
    return np.load(Path(uri) / "tokens.npy")


def test_a_folder_of_pictures_becomes_an_index_and_broken_ones_are_counted(tiny):
    gallery = open_index(tiny.index)
    assert tiny.manifest.counts == {"images": 24, "rejected": 1}
    assert tiny.manifest.extra["rejected"][0][0] == "plain/broken"
    assert "truncated or damaged" in tiny.manifest.extra["rejected"][0][1]
    assert list(gallery.ids) == sorted(gallery.ids) and "a b/pïc 01" in gallery.ids
    assert gallery.picture("a b/pïc 01").startswith(b"\x89PNG")
    assert not (Path(tiny.index) / "parts").exists()


def test_stored_features_give_the_same_index_as_the_pictures(tiny, features, tmp_path):
    data = DataConfig(folder=FolderConfig(root=str(tiny.images)))
    manifest = run_index(run(tiny, tmp_path / "i", images=None, features=(features,), data=data))
    assert manifest.counts == {"images": 24, "rejected": 1}
    assert np.array_equal(tokens(tmp_path / "i"), tokens(tiny.index))
    assert open_index(tmp_path / "i").picture("plain/02") == open_index(tiny.index).picture("plain/02")


def test_features_without_a_data_set_give_an_index_without_pictures(tiny, features, tmp_path):
    run_index(run(tiny, tmp_path / "i", images=None, features=(features,), data=None))
    gallery = open_index(tmp_path / "i")
    assert gallery.pictures is None and len(gallery.ids) == 24 and gallery.picture("plain/02") == b""


def test_features_of_another_tower_are_refused(tiny, features, tmp_path):
    manifest = json.loads((Path(features) / "manifest.json").read_text())
    copy = tmp_path / "features"
    copy.mkdir()
    (copy / "shards").symlink_to(Path(features) / "shards")
    manifest["extra"]["encoder_digest"] = "f" * 32
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IndexMismatchError, match="vision tower ffffffffffff"):
        run_index(run(tiny, tmp_path / "i", images=None, features=(str(copy),), data=None))


def test_features_that_lack_gallery_images_are_refused(tiny, features, tmp_path):
    more = TINY.write_pictures(tmp_path / "pictures", count=26)
    data = DataConfig(folder=FolderConfig(root=str(more)))
    with pytest.raises(DataError, match=r"lack 2 of 27 gallery images, e.g. 'a b/pïc 25'"):
        run_index(run(tiny, tmp_path / "i", images=None, features=(features,), data=data))


def test_a_killed_run_goes_on_after_its_finished_parts(tiny, tmp_path, monkeypatch):
    encode, done = making.PartEncoder.encode, []

    def die_in_the_third_part(self, ids, places):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(tuple(ids))
        return encode(self, ids, places)

    monkeypatch.setattr(making.PartEncoder, "encode", die_in_the_third_part)
    with pytest.raises(KeyboardInterrupt):
        run_index(run(tiny, tmp_path / "i", shard=7))
    with pytest.raises(ArtifactError, match="half-written"):
        read_manifest(tmp_path / "i", "index")
    again = []
    monkeypatch.setattr(
        making.PartEncoder, "encode", lambda self, ids, places: again.append(tuple(ids)) or encode(self, ids, places)
    )
    manifest = run_index(run(tiny, tmp_path / "i", shard=7))
    assert manifest.counts == tiny.manifest.counts
    assert not set(done) & set(again) and sum(map(len, done + again)) == 25
    assert np.array_equal(tokens(tmp_path / "i"), tokens(tiny.index))


def test_actors_that_do_not_see_the_stages_folder_are_told_so(tiny, tmp_path, monkeypatch):
    real = stage.open_stage

    def on_another_disk(*args, **fields):
        opened = real(*args, **fields)
        (Path(opened.work_uri) / "stage.json").unlink()
        return opened

    monkeypatch.setattr(stage, "open_stage", on_another_disk)
    with pytest.raises(ArtifactError, match="do not share that disk"):
        run_index(run(tiny, tmp_path / "i", pool=PoolConfig(size=1), ray=RayConfig(enabled=False)))


def test_a_finished_run_is_recognised_and_does_nothing(tiny, monkeypatch):
    monkeypatch.setattr(making, "make_index", None)
    assert run_index(run(tiny, tiny.index)).digest == tiny.manifest.digest


def test_batch_and_part_sizes_change_no_vector_beyond_rounding(tiny, tmp_path):
    run_index(run(tiny, tmp_path / "i", shard=5, batch=2))
    assert tokens(tmp_path / "i") == pytest.approx(tokens(tiny.index), abs=2e-3)


def test_two_pictures_that_differ_in_their_suffix_alone_keep_it(tiny, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("b.png", "PNG")):
        (folder / name).write_bytes(TINY.picture(1, kind=kind))
    run_index(run(tiny, tmp_path / "i", images=str(folder)))
    assert open_index(tmp_path / "i").ids == ("a.jpg", "a.png", "b")


@pytest.mark.parametrize("content", [{}, {"x.png": b"broken"}])
def test_a_folder_without_a_usable_picture_is_refused_and_leaves_nothing_complete(tiny, tmp_path, content):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in content.items():
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match="holds no image|No image was left"):
        run_index(run(tiny, tmp_path / "i", images=str(folder)))
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("fields", [{"factory": "Flatt"}, {"search_parameters": "nprobe=4"}])
def test_an_index_that_faiss_refuses_fails_before_anything_is_encoded(tiny, tmp_path, fields):
    with pytest.raises(ConfigError, match="Flatt|nprobe=4") as caught:
        run_index(run(tiny, tmp_path / "i", index={"settings": fields}))
    assert "faiss::" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    run_index(run(tiny, tmp_path / "i"))


def test_missing_inputs_are_named(tiny, tmp_path):
    with pytest.raises(DataError, match="no-folder"):
        run_index(run(tiny, tmp_path / "i", images=str(tmp_path / "no-folder")))
    with pytest.raises(ArtifactError, match="no-checkpoint"):
        run_index(run(tiny, tmp_path / "i", checkpoint=str(tmp_path / "no-checkpoint")))
    with pytest.raises(ConfigError, match="images"):
        run_index(run(tiny, tmp_path / "i", images=None, features=()))


def test_a_part_comes_back_as_it_was_written(tmp_path):
    block = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    part = Part(["ü", "b", "c"], ["k1", "k2", ""], [block, block[:1]], [], [b"x", b"", b"z"], [("c", "why")])
    (tmp_path / "part").write_bytes(part.to_bytes())
    back = PartRows(str(tmp_path / "part"))
    assert (back.keys, back.rejected, back.has_patches) == (part.keys, part.rejected, False)
    assert [row.tolist() for row in back.blocks("tokens.npy")] == [block.tolist(), block[:1].tolist()]
    assert list(map(back.pictures(), (0, 1, 2, 3))) == [b"x", b"", b"z", b""] and list(back.blocks("patches.npy")) == []
    assert Rows([back]).places == {"k1": (0, 0), "k2": (0, 1)}  # no row without a known content


def test_thumbnails_are_small_lossless_when_tiny_and_without_metadata():
    small = Image.new("RGB", (48, 48), "red")
    large = Image.new("RGB", (900, 300), "blue")
    for image in (small, large):
        image.info.update({name: b"secret" for name in ("exif", "comment", "xmp", "icc_profile")})
    assert thumbnail(small, 256).startswith(b"\x89PNG")
    packed = thumbnail(large, 256)
    assert packed.startswith(b"\xff\xd8") and b"secret" not in packed + thumbnail(small, 256)


def write_over(path, data):
    """Other bytes with the old dates."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def copied(tiny, tmp_path):
    """Pictures of one's own, with their features."""
    folder = TINY.write_pictures(tmp_path / "pictures", count=6, broken=False)
    return folder, TINY.write_features(tmp_path / "features", folder, tiny.checkpoint)


def from_features(tiny, copied, out, **fields):
    data = DataConfig(folder=FolderConfig(root=str(copied[0])))
    return run_index(run(tiny, out, images=None, features=(copied[1],), data=data, **fields))


@pytest.mark.parametrize("pictures_kept", [True, False])
def test_a_picture_that_was_replaced_is_never_paired_with_its_old_vector(tiny, copied, tmp_path, pictures_kept):
    fields = {} if pictures_kept else {"thumbnail_size": 0}
    assert from_features(tiny, copied, tmp_path / "i", **fields).counts == {"images": 6, "rejected": 0}
    path = copied[0] / "plain" / "02.png"
    write_over(path, TINY.picture(77, (42, 32)))
    manifest = from_features(tiny, copied, tmp_path / "j", **fields)
    assert manifest.counts == {"images": 5, "rejected": 1}
    assert manifest.extra["rejected"][0][0] == "plain/02" and "has changed" in manifest.extra["rejected"][0][1]
    assert "plain/02" not in open_index(tmp_path / "j").ids
    with pytest.raises(ArtifactError, match="made by a different run"):
        from_features(tiny, copied, tmp_path / "i", **fields)


def test_one_picture_that_broke_or_went_later_is_rejected_and_the_rest_is_indexed(tiny, copied, tmp_path):
    (copied[0] / "plain" / "02.png").unlink()
    (copied[0] / "plain" / "02.png").symlink_to("nowhere")
    (copied[0] / "plain" / "04.png").write_bytes(b"")
    manifest = from_features(tiny, copied, tmp_path / "i")
    assert manifest.counts == {"images": 4, "rejected": 2} and len(open_index(tmp_path / "i").ids) == 4
    reasons = dict(json.loads((tmp_path / "i" / "rejected.json").read_text()))
    assert "is a link to 'nowhere'" in reasons["plain/02"] and "has changed" in reasons["plain/04"]


def test_a_folder_index_of_replaced_pictures_is_not_the_finished_one(tiny, copied, tmp_path):
    before = run_index(run(tiny, tmp_path / "i", images=str(copied[0])))
    path = copied[0] / "plain" / "02.png"
    write_over(path, path.read_bytes()[:-1] + b"x")
    assert run_index(run(tiny, tmp_path / "i", images=str(copied[0]))).inputs != before.inputs


def test_every_file_of_a_folder_is_indexed_or_named(tiny, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    good = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.mpo": "MPO", "d.tif": "TIFF", "e.avif": "AVIF", "f": "PNG",
            "g.jpg": "PNG", "g.png": "PNG", "g.jpg.png": "PNG"}  # fmt: skip
    for number, (name, kind) in enumerate(good.items()):
        (folder / name).write_bytes(TINY.picture(number, kind=kind))
    with open(os.path.join(os.fsencode(folder), b"caf\xe9.png"), "wb") as stream:
        stream.write(TINY.picture(50))
    (folder / "far").symlink_to(TINY.write_pictures(tmp_path / "far", count=1, broken=False))
    for name in ("x.HEIC", "y.jxl", "z"):
        (folder / name).write_bytes(b"no picture")
    (folder / "w.jpg").symlink_to("nowhere")
    (folder / "list.csv").write_text("a,b")
    manifest = run_index(run(tiny, tmp_path / "i", images=str(folder)))
    expected = {"a", "b", "c", "d", "e", "f", "g.jpg", "g.png", "g.jpg.png", "caf%E9", "far/plain/00"}
    assert set(open_index(tmp_path / "i").ids) == expected
    assert {name for name, _ in manifest.extra["rejected"]} == {"x", "y", "z", "w"}
    assert manifest.extra["notes"] == ["1 files left out: no pictures by their names, e.g. 'list.csv'"]


@pytest.mark.parametrize("threads", [1, 2])
def test_with_two_threads_a_batch_is_decoded_while_another_is_in_the_model(tiny, tmp_path, monkeypatch, threads):
    load, encode = parts.FolderSource.load, parts.PartEncoder._vectors
    begun, two, met = [], threading.Event(), []

    def tell(self, ids, places):
        begun.append(1)
        if len(begun) == 2:
            two.set()
        return load(self, ids, places)

    def wait(self, loaded):
        met.append(len(met) > 0 or two.wait(5 if threads == 2 else 0.1))
        return encode(self, loaded)

    monkeypatch.setattr(parts.FolderSource, "load", tell)
    monkeypatch.setattr(parts.PartEncoder, "_vectors", wait)
    run_index(run(tiny, tmp_path / "i", batch=10, shard=25, threads=threads))
    assert met == [threads == 2, True, True]
    assert np.array_equal(tokens(tmp_path / "i"), tokens(tiny.index))


@pytest.mark.parametrize("threads", [1, 3, 20])
def test_threads_change_no_vector_and_leave_torch_as_it_was(tiny, tmp_path, threads):
    before = torch.get_num_threads()
    run_index(run(tiny, tmp_path / "i", threads=threads))
    assert tokens(tmp_path / "i").tobytes() == tokens(tiny.index).tobytes() and torch.get_num_threads() == before


def test_a_device_is_used_by_one_thread_while_another_decodes(tiny, monkeypatch, tmp_path):
    encoder = parts.PartEncoder(run(tiny, tmp_path / "i", threads=1), "", 1, str(tmp_path))
    assert encoder._threads() == (1, 1)
    encoder._gate = threading.Lock()
    assert encoder._threads() == (2, 1)
    encoder._run, encoder._gate = run(tiny, tmp_path / "i", threads=32), None
    assert encoder._threads() == (8, 4)
