"""A follower shows what was written, whatever it was built from before."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from living_gallery import SHAPE, World, vectors

from cirray.catalogue import follower as follower_module
from cirray.catalogue.change import Change
from cirray.catalogue.table import Catalogue
from cirray.core.errors import ArtifactError, DataError, StoreError
from cirray.index import metadata as metadata_module
from cirray.index.filters import mask_of
from cirray.index.metadata import Columns
from cirray.index.store import UnknownImageError


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "gallery")


def test_an_empty_gallery_answers_and_fills(world):
    follower = world.follow()
    world.check(follower.gallery)
    world.put("b", "a")
    world.check(follower.poll())
    world.drop("a", "b")
    world.check(follower.poll())


@pytest.mark.parametrize("kind", ["exact", "faiss"])
def test_every_mixture_of_adds_replacements_and_deletions_is_searched_as_a_scan_of_what_is_left(
    world, kind, monkeypatch
):
    monkeypatch.setattr(follower_module, "_LEAST", 30)
    rng = np.random.default_rng(1)
    world.put(*(f"img {number:03d}" for number in range(60)))
    follower = world.follow(kind)
    for step in range(25):
        names = [f"img {number:03d}" for number in rng.integers(0, 120, 6)]
        world.put(*names[:4], seed=step)
        world.drop(*names[4:], "never there")
        world.check(follower.poll() if step % 4 else follower.settle(), seed=step)
    world.check(world.follow(kind).gallery)


def test_few_changes_are_taken_by_their_numbers_and_all_else_is_found_by_a_scan(world, monkeypatch):
    scans, scanned = [], Catalogue._scanned
    monkeypatch.setattr(Catalogue, "_scanned", lambda self, *args: scans.append(1) or scanned(self, *args))
    world.put(*(f"img {number}" for number in range(20)))
    follower = world.follow()
    scans.clear()
    for step in range(12):
        world.put(f"img {step}", f"new {step}", seed=step)
        world.drop(f"img {step + 5}")
        world.check(follower.poll(), seed=step)
    assert not scans  # which would look into every file
    world.drop("img 19", "new 3")
    world.table.compact(keep_s=0)
    world.put("late")
    world.check(follower.poll())
    assert scans  # what was deleted may leave a gap
    scans.clear()
    for name in ("a", "b"):
        world.put(name)
        world.check(follower.poll())
    world.table._table.optimize.compact_files()
    world.check(follower.poll())
    assert not scans
    world.put(*(f"many {number}" for number in range(5_000)))
    world.check(follower.poll())
    assert scans


def test_equal_scores_are_ordered_by_id_across_base_and_newer_images(world):
    same = vectors(7)
    for name in ("b", "d"):
        world.table.write([Change(name, same)])
    follower = world.follow()
    for name in ("a", "c", "e"):
        world.table.write([Change(name, same)])
    query = np.ones((1, SHAPE[1]), np.float32)
    assert follower.poll().search_index.search(query, 4)[0] == [("a", "b", "c", "d")]


def test_a_gallery_that_a_request_holds_does_not_change(world):
    world.put("a", "b")
    follower = world.follow()
    before = follower.gallery
    world.put("c")
    world.drop("a")
    after = follower.poll()
    assert before.ids == ("a", "b") and after.ids == ("b", "c")
    assert "a" in before and "a" not in after and "c" not in before
    with pytest.raises(UnknownImageError, match="no image 'a'. It holds 2"):
        after.row("a")


def test_the_last_of_several_writes_of_an_id_counts_also_in_one_group(world):
    one, two, three = vectors(1), vectors(2), vectors(3)
    world.table.write([Change("a", one), Change("a", two, b"two", (1, 1))])
    follower = world.follow()
    assert np.array_equal(follower.gallery.view.base.rows.tokens_NQD[0], two)
    Catalogue.open(world.uri).write([Change("a", three, b"three", (1, 1))])
    world.table.write([Change("b"), Change("b", one)])
    gallery = follower.poll()
    assert gallery.ids == ("a", "b") and gallery.picture("a") == b"three"


def test_pictures_sizes_origins_and_metadata_follow_their_row(tmp_path):
    world = World(tmp_path / "gallery", {"price": pa.float64(), "tags": pa.list_(pa.string())})
    world.put("b", picture=b"bbb", size=(9, 6), origin="/x/b.png", content="d1", metadata={"price": 2, "tags": ["x"]})
    world.put("d", metadata={"price": None})
    follower = world.follow()
    world.put("a", picture=b"aaa", size=(3, 4), metadata={"price": 1.5})
    world.put("c")
    world.drop("d")
    gallery = follower.poll()
    assert gallery.ids == ("a", "b", "c")
    assert gallery.metadata.to_pylist() == [
        {"price": 1.5, "tags": None}, {"price": 2.0, "tags": ["x"]}, {"price": None, "tags": None}
    ]  # fmt: skip
    assert [gallery.picture(name) for name in "abc"] == [b"aaa", b"bbb", b""]
    assert [gallery.pictures.size(row) for row in range(3)] == [(3, 4), (9, 6), None]
    assert gallery.originals.find(0) is None and str(gallery.originals.find(1)[0]) == "/x/b.png"
    tag = gallery.tag("b")
    world.put("b", picture=b"new", size=(9, 6))
    gallery = follower.poll()
    assert gallery.tag("b") != tag and gallery.picture("b") == b"new" and gallery.tag("a") == gallery.tag("a")


FILTERS = ("price < 3", "price is null", "not (price >= 2)", "tags contains 'x'", "id in ['n 03', 'n 31'] or price = 1")


def test_filters_facets_and_values_of_a_changed_gallery_are_those_of_its_metadata_and_its_base_is_asked_once(
    tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr(metadata_module, "mask_of", lambda *both: asked.append(len(both[1])) or mask_of(*both))
    world, rng = World(tmp_path / "gallery", {"price": pa.float64(), "tags": pa.string()}), np.random.default_rng(0)

    def put(name):
        price = None if rng.random() < 0.2 else int(rng.integers(5))
        world.put(name, metadata={"price": price, "tags": str(rng.choice(["x", "y"]))})

    for number in range(30):
        put(f"n {number:02d}")
    follower = world.follow()
    for step in range(6):
        for number in rng.integers(0, 40, 3):
            put(f"n {number:02d}")
        world.drop(f"n {int(rng.integers(40)):02d}")
        gallery = follower.poll()
        plain = Columns(gallery.ids, gallery.metadata)
        for text in FILTERS:
            asked.clear()
            found = gallery.columns.mask(text)
            assert len(asked) == 1 + (step == 0) and asked[-1] == len(gallery.view.newer.rows)
            assert found.tolist() == plain.mask(text).tolist() and found.dtype == bool
        assert gallery.columns.facets(found) == plain.facets(found) and gallery.columns.schema == plain.schema
        rows = [*range(len(gallery))][::-2]
        assert gallery.columns.rows(rows, ["tags", "price"]) == plain.rows(rows, ["tags", "price"])


def test_compaction_changes_nothing_that_is_shown_and_gone_ids_stay_gone(world):
    world.put(*"abcdefgh", picture=b"p", size=(1, 1))
    early, late = world.follow(), world.follow()
    world.put("a", "b", seed=1, picture=b"q", size=(1, 1))
    world.drop("c", "d")
    early.poll()
    assert world.table.compact(keep_s=0) == 6  # two replaced, two that are gone, and their notes
    assert world.table.compact(keep_s=0) == 0
    for follower in (early, late, world.follow()):
        world.check(follower.poll())
        assert follower.gallery.picture("a") == b"q" and follower.gallery.picture("h") == b"p"
    world.put("c", seed=5)
    for follower in (early, late):
        world.check(follower.poll())


def test_compaction_leaves_what_is_younger_than_asked(world):
    world.put("a", "b")
    world.put("a", seed=1)
    world.drop("b")
    assert world.table.compact(keep_s=60) == 0
    world.check(world.follow().gallery)


@pytest.mark.parametrize(
    "change, said",
    [
        (Change("a", np.zeros((3, 8))), "The vector of 'a' has 24 values; this gallery's have 16"),
        (Change("a", np.full(SHAPE, np.nan)), "not finite"),
        (Change("", vectors(1)), "1 to 1,024 characters"),
        (Change("x" * 1025, vectors(1)), "1 to 1,024 characters"),
        (Change("\ud800", vectors(1)), "UTF-8"),
        (Change("a", vectors(1), metadata={"colour": 1}), "no metadata column 'colour'. It has price"),
        (Change("a", vectors(1), metadata={"price": "much"}), "column 'price' holds double"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_words_and_nothing_of_its_group_is_written(tmp_path, change, said):
    world = World(tmp_path / "gallery", {"price": pa.float64()})
    with pytest.raises(DataError, match=said):
        world.table.write([Change("good", vectors(2)), change])
    assert len(world.follow().gallery) == 0


def test_ids_of_any_unicode_come_back(world):
    names = ["ein/Bild %C3.png", "日本", "a'b\"c`;--", "\u0000", "é", "e\u0301", "../../etc/passwd", "🙂" * 300, "\n"]
    world.put(*names)
    world.check(world.follow().gallery)
    world.drop(*names[:4])
    world.check(world.follow().gallery)


def test_a_place_without_a_table_is_said(tmp_path):
    with pytest.raises(ArtifactError, match="has no table of images"):
        Catalogue.open(str(tmp_path))


def test_a_store_that_refuses_is_said_and_searches_go_on(world):
    world.put("a")
    follower = world.follow()
    table = Path(world.uri) / "images.lance"
    os.rename(table, table.with_suffix(".away"))
    table.write_text("in its place")
    with pytest.raises(StoreError, match="cannot be"):
        world.table.write([Change("b", vectors(1))])
    with pytest.raises(StoreError, match="cannot be read now"):
        follower.poll()
    assert follower.gallery.ids == ("a",)
    table.unlink()
    os.rename(table.with_suffix(".away"), table)
    world.put("c")
    world.check(follower.poll())


def test_a_column_may_be_added_later_and_is_null_where_an_image_has_no_value(tmp_path):
    world = World(tmp_path / "gallery", {"price": pa.float64()})
    world.put("a", metadata={"price": 1.0})
    follower, writer = world.follow(), Catalogue.open(world.uri)
    number = follower.gallery.view.base.rows.numbers_N.tolist()
    assert Catalogue.open(world.uri).add_columns({"price": pa.float64(), "sold": pa.bool_()}) == ["sold"]
    assert Catalogue.open(world.uri).add_columns({"sold": pa.bool_()}) == []
    gallery = follower.poll()
    assert gallery.columns.schema.names == ["id", "price", "sold"] and gallery.columns.mask("sold is null").all()
    world.table.write([Change("b", vectors(1), metadata={"sold": True})])  # opened before the column was there
    writer.write([Change("c", vectors(2), metadata={"price": 2.0})])
    for gallery in (follower.poll(), world.follow().gallery):
        assert gallery.metadata.to_pydict() == {"price": [1.0, None, 2.0], "sold": [None, True, None]}
        assert [gallery.ids[row] for row in np.flatnonzero(gallery.columns.mask("sold"))] == ["b"]
    assert follower.gallery.view.base.rows.numbers_N.tolist() == number
    with pytest.raises(DataError, match="'price' holds double here"):
        world.table.add_columns({"price": pa.string()})


def test_an_unknown_id_is_told_one_that_may_be_meant(world):
    world.put("beach/0012", "forest/0001")
    gallery = world.follow().gallery
    with pytest.raises(DataError, match="no image 'beach/012'. It holds 2. Did you mean 'beach/0012'"):
        gallery.row("beach/012")
    world.drop("beach/0012", "forest/0001")
    with pytest.raises(DataError, match=r"no image 'x'. It holds 0\.$"):
        world.follow().gallery.row("x")
