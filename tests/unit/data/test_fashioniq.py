import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core.config import load_config
from cirray.core.errors import ConfigError, DataError
from cirray.data.caption_rules import RULES, four_ways
from cirray.data.config import DataConfig, FashionIQConfig
from cirray.data.fashioniq import CATEGORIES, read_fashioniq

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
published = pytest.mark.skipif(not (MADE.SHARED / "fashioniq").is_dir(), reason="the published files are not here")
TRIPLETS = {"dress": (5985, 2017, 2024), "shirt": (5988, 2038, 2038), "toptee": (6027, 1961, 2056)}
IMAGES = {"dress": (11452, 3817, 3818), "shirt": (19036, 6346, 6346), "toptee": (16121, 5373, 5374)}
UNION = {"dress": 2628, "shirt": 3089, "toptee": 2902}


@pytest.fixture
def root(tmp_path):
    return MADE.write_fashioniq(tmp_path)


def read(root, **fields):
    return read_fashioniq(FashionIQConfig(root=str(root), **fields))


@pytest.mark.parametrize(
    ("rule", "texts"),
    [
        ("clip4cir", ["Is shiny and red and has longer sleeves"]),
        ("plain_and", [" Is Shiny and RED.  and has longer sleeves?"]),
        ("reverse_and", ["has longer sleeves? and  Is Shiny and RED. "]),
        ("both_averaged", ["Is Shiny and RED and has longer sleeves"]),
        (
            "both_separate",
            [" Is Shiny and RED.  and has longer sleeves?", "has longer sleeves? and  Is Shiny and RED. "],
        ),
        ("each_alone", [" Is Shiny and RED. ", "has longer sleeves?"]),
    ],
)
def test_each_caption_rule_joins_as_its_source_does(root, rule, texts):
    queries = [q for q in read(root, captions=rule, category="dress").queries if q.query_id.startswith("dress-val-0")]
    assert [q.modification for q in queries] == texts
    assert len({q.query_id for q in queries}) == len(queries)
    assert f"captions `{rule}`" in read(root, captions=rule).protocol.describe()


def test_averaged_captions_are_two_variants_of_one_query(root):
    query = read(root, captions="both_averaged").queries[0]
    assert query.variants == ("Is Shiny and RED and has longer sleeves", "has longer sleeves and Is Shiny and RED")
    assert all(q.variants == () for rule in set(RULES) - {"both_averaged"} for q in read(root, captions=rule).queries)


def test_an_empty_caption_is_joined_as_it_is_and_dropped_only_where_each_stands_alone(root):
    assert read(root, category="dress").queries[1].modification == " and is blue"
    alone = read(root, category="dress", captions="each_alone")
    assert [q.query_id for q in alone.queries] == ["dress-val-0-0", "dress-val-0-1", "dress-val-1-0"]
    assert any("1 queries with an empty caption, dropped" in note for note in alone.notes)
    assert any("joined as they are" in note for note in read(root).notes)


def test_a_query_searches_the_gallery_of_its_category(root):
    dataset = read(root)
    assert {q.gallery for q in dataset.queries} == set(CATEGORIES) == set(dataset.galleries)
    assert all(set(q.target_ids) <= set(dataset.galleries[q.gallery]) for q in dataset.queries)
    assert dataset.galleries["shirt"][-1] == "shared" and dataset.gallery_ids.count("shared") == 1
    assert set(read(root, category="dress").galleries) == {"dress"}


def test_the_smaller_gallery_is_the_union_of_references_and_targets_and_says_so(root):
    dataset = read(root, gallery="val_split")
    assert dataset.galleries["dress"] == ("dress-val-0", "dress-val-1", "dress-val-3")
    assert "`val_split` (VAL)" in dataset.protocol.describe() and "`original`" in read(root).protocol.describe()
    with pytest.raises(DataError, match="test split has no targets; choose fashioniq.gallery=original"):
        read(root, gallery="val_split", split="test")


def test_references_are_kept_unless_asked_otherwise(root):
    assert read(root).protocol.reference_rule == "keep"
    assert read(root, reference_rule="remove").protocol.reference_rule == "remove"
    assert read(root).protocol.metrics == ("category_recall",) and read(root).protocol.ks == (10, 50)


def test_test_queries_have_no_targets(root):
    dataset = read(root, split="test")
    assert len(dataset.queries) == 6 and not any(q.target_ids for q in dataset.queries)


def test_the_suffix_of_every_image_is_found_on_disk(root):
    for name in ("dress-val-0.png", "dress-val-1.jpg", "dress-val-2.JPEG"):
        MADE.put_image(root / "images" / name)
    images = read(root).images
    found = [images.path(f"dress-val-{number}").name for number in range(4)]
    assert found == ["dress-val-0.png", "dress-val-1.jpg", "dress-val-2.JPEG", "dress-val-3.jpg"]
    MADE.put_image(root / "images" / "dress-val-1.png")
    with pytest.raises(DataError, match="Image 'dress-val-1' may be 'dress-val-1.jpg' or 'dress-val-1.png' in"):
        read(root)


def test_training_texts_are_joined_or_written_in_all_four_ways(root):
    joined = read(root, category="dress").split("train")
    assert [t.modification for t in joined] == ["Is shiny and red and has longer sleeves", " and is blue"]
    four = read(root, category="dress", train_captions="four_ways")
    rows = [t for t in four.split("train") if t.triplet_id.startswith("fashioniq-dress-train-0")]
    assert tuple(t.modification for t in rows) == four_ways(" Is Shiny and RED. ", "has longer sleeves?")
    assert [t.modification for t in rows][1:] == ["Has longer sleeves and Is Shiny and RED", "Is shiny and red",
                                                  "Has longer sleeves"]  # fmt: skip
    assert sum(t.weight for t in rows) == 1.0 and len({t.triplet_id for t in rows}) == 4
    assert any("1 triplets left out" in note for note in four.notes)
    assert "training texts: four_ways" in four.notes and len(four.split("val")) == 2


def test_the_guard_covers_every_category_and_shared_images_are_noted(root):
    dataset = read(root, category="toptee")
    assert {"dress-val-0", "shirt-test-1", "shared"} <= dataset.guarded and "dress-train-0" not in dataset.guarded
    assert any("1 train triplets hold images of another category" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("captions", "words"),
    [(["one"], "1 captions found; exactly two"), (["one", 5], "which is not a text"), ("one", "is not a list")],
)
def test_captions_that_are_not_two_texts_are_refused(root, captions, words):
    row = {"target": "dress-val-1", "candidate": "dress-val-0", "captions": captions}
    MADE.put_json(root / "captions/cap.dress.val.json", [row])
    with pytest.raises(DataError, match=f"cap.dress.val.json', entry 0: .*{words}"):
        read(root)


def test_a_missing_file_and_a_wrong_split_are_named(root):
    (root / "captions/cap.shirt.val.json").unlink()
    with pytest.raises(DataError, match="There is no file .*cap.shirt.val.json"):
        read(root)
    with pytest.raises(ConfigError, match="fashioniq.split.*'dev'"):
        load_config(DataConfig, {"format": "fashioniq"}, ["fashioniq.split=dev"])


@published
@pytest.mark.parametrize("number, split", enumerate(("train", "val", "test")))
def test_the_published_files_have_their_sizes(number, split):
    dataset = read(MADE.SHARED / "fashioniq", split=split)
    for category in CATEGORIES:
        assert len(dataset.galleries[category]) == IMAGES[category][number]
        assert sum(q.gallery == category for q in dataset.queries) == TRIPLETS[category][number]


@published
def test_the_published_quirks_are_handled_as_documented():
    dataset = read(MADE.SHARED / "fashioniq")
    assert len(dataset.gallery_ids) == 15_415
    empty = [q.query_id for q in dataset.queries if q.modification.startswith(" and ")]
    assert empty == ["shirt-val-1928", "toptee-val-676", "toptee-val-1076"]
    assert [q.query_id for q in read(MADE.SHARED / "fashioniq", split="test").queries if q.modification[0] == " "] == [
        "shirt-test-276"
    ]
    train = dataset.split("train")
    assert len(train) == 18_000 and len({t.reference_id for t in train}) == 12_525
    assert len({image for t in train for image in (t.reference_id, t.target_id)}) == 25_136
    assert sum(t.modification.startswith(" and ") for t in train) == 11
    assert [t.triplet_id for t in train if t.modification.endswith(" and ")] == [
        "fashioniq-dress-train-1039", "fashioniq-toptee-train-3999",
    ]  # fmt: skip
    assert any(not t.modification.isascii() for t in train) and any(
        not q.modification.isascii() for q in dataset.queries
    )
    assert {q.reference_id for q in dataset.queries} <= set(dataset.gallery_ids)


@published
def test_the_published_smaller_gallery_and_separate_captions_have_their_sizes():
    dataset = read(MADE.SHARED / "fashioniq", gallery="val_split", captions="each_alone")
    assert {name: len(ids) for name, ids in dataset.galleries.items()} == UNION
    assert len(dataset.queries) == 2 * 6016 - 3
    assert len(read(MADE.SHARED / "fashioniq", captions="both_separate").queries) == 2 * 6016
