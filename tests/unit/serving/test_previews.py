"""Gallery pictures large: from the original file, and only from the one that was indexed."""

import io
import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cirray.core.artifacts import read_manifest
from cirray.data.config import ImageLimits
from cirray.index.originals import Originals
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.previews import LARGE, large_picture
from cirray.serving.service import DirectService

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_service.py")))
SMALL, BIG = (256, 192), (LARGE, 1200)


def photograph(path, turned=6):
    """2000 x 1500 upright, stored lying on its side, with an owner's name in every kind of metadata."""
    upright = Image.new("RGB", (2000, 1500), "white")
    upright.paste("red", (0, 0, 1000, 1500))
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = turned, "the owner"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, comment=b"the owner")


@pytest.fixture
def photographs(tiny, tmp_path):
    folder = tmp_path / "photographs" / "trip"
    folder.mkdir(parents=True)
    photograph(folder / "one.jpg")
    (folder / "two.png").write_bytes(TINY.picture(1, (300, 30)))
    run_index(IndexRun(checkpoint=tiny.checkpoint, images=str(folder), out=str(tmp_path / "index")))
    return folder, SearchEngine.open(tiny.checkpoint, str(tmp_path / "index"))


@pytest.fixture
def ask(photographs, make_caller):
    def get(path, **args):
        reply = make_caller(DirectService(photographs[1]), **args)("GET", path)
        assert reply.status_code == 200, reply.text
        return Image.open(io.BytesIO(reply.content)), reply

    return get


def test_a_large_picture_is_the_original_upright_and_without_metadata(ask):
    large, reply = ask("/v1/images/one?size=large")
    assert large.size == BIG and reply.headers["content-type"] == "image/jpeg"
    red, white = large.getpixel((100, 600)), large.getpixel((1500, 600))
    assert red[0] > 200 and red[1] < 60 and min(white) > 240
    assert b"owner" not in reply.content and not large.getexif() and "comment" not in large.info
    medium, between = ask("/v1/images/one?size=medium")
    assert max(medium.size) == 640 and b"owner" not in between.content
    assert between.headers["etag"] != reply.headers["etag"]
    small, thumbnail = ask("/v1/images/one")
    assert small.size == SMALL and thumbnail.headers["etag"] != reply.headers["etag"]
    assert b"owner" not in thumbnail.content


def test_a_picture_that_was_replaced_removed_or_is_too_large_is_shown_as_indexed(ask, photographs):
    path = photographs[0] / "one.jpg"
    assert ask("/v1/images/one?size=large", originals=False)[0].size == SMALL
    limits = ImageLimits(max_pixels=2_000_000)
    assert Image.open(io.BytesIO(large_picture(photographs[1].gallery, "one", limits))).size == SMALL
    before = path.read_bytes()
    photograph(path, turned=8)
    assert ask("/v1/images/one?size=large")[0].size == SMALL
    path.unlink()
    assert ask("/v1/images/one?size=large")[0].size == SMALL
    path.mkdir()
    assert ask("/v1/images/one?size=large")[0].size == SMALL
    path.rmdir()
    path.write_bytes(before)
    assert ask("/v1/images/one?size=large")[0].size == BIG


def test_no_name_in_an_index_leads_out_of_its_folder_or_to_other_bytes(photographs):
    folder, engine = photographs
    found = engine.gallery.originals
    assert found.root == str(folder) and [name for name, _ in found.rows] == ["one.jpg", "two.png"]
    digest = found.rows[0][1]
    names = json.dumps([["../trip/one.jpg", digest], [str(folder / "one.jpg"), digest]])
    hostile = replace(engine.gallery, originals=Originals(found.root, names.encode()))
    for name in ("one", "two"):
        assert large_picture(hostile, name, ImageLimits()) == engine.gallery.picture(name)
    names = json.dumps([["two.png", digest], ["", ""]])
    hostile = replace(engine.gallery, originals=Originals(found.root, names.encode()))
    for name in ("one", "two"):
        assert large_picture(hostile, name, ImageLimits()) == engine.gallery.picture(name)


def test_the_gallery_and_answers_tell_the_size_of_every_picture_and_no_path(photographs, make_caller):
    folder, engine = photographs
    call = make_caller(DirectService(engine))
    items = call("GET", "/v1/gallery").json()["items"]
    assert [(item["id"], item["width"], item["height"]) for item in items] == [("one", *SMALL), ("two", 256, 26)]
    hits = call.search(text="make it blue", gallery_id="one", exclude_reference=False).json()["hits"]
    assert {hit["id"]: (hit["width"], hit["height"]) for hit in hits} == {"one": SMALL, "two": (256, 26)}
    answers = [call("GET", path).text for path in ("/v1/gallery", "/version", "/v1/images/none?size=large")]
    assert not any(str(folder.parent) in text for text in answers)


def test_the_same_pictures_in_another_folder_give_the_same_index(tiny, photographs, tmp_path):
    moved = photographs[0].rename(tmp_path / "elsewhere")
    again = run_index(IndexRun(checkpoint=tiny.checkpoint, images=str(moved), out=str(tmp_path / "again")))
    assert again.digest == read_manifest(str(tmp_path / "index")).digest
    assert again.extra["originals"] == str(moved)


def test_an_unknown_size_is_a_problem(make_caller):
    reply = make_caller()("GET", "/v1/images/plain/00?size=huge")
    assert reply.status_code == 422 and "size" in reply.json()["detail"]
