"""Which images a part of a data set means, and what their files hold."""

import os

import pytest

from cirray.core.errors import DataError
from cirray.core.ids import Texts
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.data.config import DataConfig, FolderConfig, ImageLimits
from cirray.pipelines.data.datasets import contents_of, list_images, part_ids
from cirray.types import Query, Triplet, stable_id, stable_id_of


@pytest.fixture
def dataset():
    names = ["a", "b", "c", "d", "e", "f", "g", "h"]
    return CirDataset(
        "d", ImageTable({name: f"{name}.png" for name in names}), Protocol("d"),
        triplets=(Triplet("1", "b", "a", "x"),), pool_ids=("c", "d"), gallery_ids=("e", "f"),
        queries=(Query("q", "g", "x", ("e",)),), captions={"a": "text", "h": "text"},
    )  # fmt: skip


def test_parts_are_the_images_that_their_files_name(dataset):
    assert part_ids(dataset, ("labelled",)) == ("a", "b", "h")
    assert part_ids(dataset, ("pool",)) == ("c", "d")
    assert part_ids(dataset, ("gallery",)) == ("e", "f", "g")
    assert part_ids(dataset, ("references",)) == ("g",)
    assert part_ids(dataset, ("gallery", "pool")) == ("c", "d", "e", "f", "g")
    assert part_ids(dataset, ("pool", "labelled", "gallery")) == tuple("abcdefgh")


def test_ids_and_crops_are_in_the_digest_and_contents_are_digests_of_bytes(tmp_path):
    from PIL import Image

    (tmp_path / "gallery").mkdir()
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "gallery" / f"{number}.png")
    data = DataConfig(folder=FolderConfig(root=str(tmp_path)))
    first = list_images(data, ("gallery",))
    assert first == list_images(data, ("gallery",)) and first.ids == ("0", "1", "2")
    assert isinstance(first.ids, Texts) and isinstance(first.places, Texts), "columns, for there may be millions"
    assert first.digest == stable_id("images", "0", "1", "2")
    before = contents_of(first.places, ImageLimits())
    path = tmp_path / "gallery" / "1.png"
    stat = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = contents_of(first.places, ImageLimits())
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    path.unlink()
    assert contents_of(first.places, ImageLimits())[1] == ""
    assert list_images(data, ("gallery",)).digest != first.digest


def test_the_digest_of_many_parts_is_that_of_all_at_once():
    for count in (0, 1, 4096, 4097, 9000):
        parts = [f"é{number}" for number in range(count)]
        assert stable_id_of(iter(parts)) == stable_id(*parts)


def test_parts_without_images_are_refused(tmp_path):
    from PIL import Image

    (tmp_path / "gallery").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "gallery" / "1.png")
    with pytest.raises(DataError, match="No image in the parts pool"):
        list_images(DataConfig(folder=FolderConfig(root=str(tmp_path))), ("pool",))
