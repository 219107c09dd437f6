import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core.errors import DataError
from cirray.data.circo import ASPECTS, read_circo
from cirray.data.config import CircoConfig, DataConfig
from cirray.data.readers import read_dataset

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
published = pytest.mark.skipif(not (MADE.SHARED / "circo").is_dir(), reason="the published files are not here")


def read(root, **fields):
    return read_circo(CircoConfig(root=str(root), **fields))


def test_ids_are_numbers_as_text_and_files_are_zero_padded(tmp_path):
    dataset = read(MADE.write_circo(tmp_path))
    query = dataset.queries[0]
    assert (query.query_id, query.reference_id, query.target_ids) == ("0", "1", ("2", "3"))
    assert query.tags == ("cardinality", "negation") and query.modification == "has two dogs"
    assert dataset.gallery_ids == ("1", "2", "3", "4", "5", "121506")
    folder = tmp_path / "COCO2017_unlabeled" / "unlabeled2017"
    assert dataset.images.path("121506") == folder / "000000121506.jpg"


def test_the_protocol_keeps_the_reference_unless_the_ptha_preset_removes_it(tmp_path):
    root = MADE.write_circo(tmp_path)
    protocol = read(root).protocol
    assert protocol.reference_rule == "keep" and protocol.ks == (5, 10, 25, 50)
    assert protocol.metrics == ("map", "aspect_map", "target_recall") and "all 6 images" in protocol.gallery_rule
    data = DataConfig(format="circo", preset="ptha", circo=CircoConfig(root=str(root)))
    assert read_dataset(data).protocol.reference_rule == "remove"


def test_the_shared_concept_is_no_part_of_the_query_unless_asked_and_then_labelled(tmp_path):
    dataset = read(MADE.write_circo(tmp_path), text="with_concept")
    assert dataset.queries[0].modification == "a dog that has two dogs"
    assert "not like for like" in dataset.protocol.describe()


def test_without_the_image_list_queries_can_be_read_and_the_gap_is_said(tmp_path):
    dataset = read(MADE.write_circo(tmp_path, info=False))
    assert dataset.gallery_ids == () and dataset.queries[0].target_ids == ("2", "3")
    assert "gallery (123,403 images) is unknown" in dataset.notes[0] and "unknown" in dataset.protocol.gallery_rule


def test_test_queries_have_no_ground_truths(tmp_path):
    assert [q.target_ids for q in read(MADE.write_circo(tmp_path), split="test").queries] == [(), ()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gt_img_ids": [3, 2]}, "does not begin with target_img_id 2"),
        ({"gt_img_ids": []}, "does not begin with target_img_id 2"),
        ({"gt_img_ids": [2, 2]}, "names an image twice"),
        ({"semantic_aspects": ["colour"]}, "semantic aspect 'colour' is none of: cardinality"),
        ({"id": 1}, "entry 1: id '1' is used by entry 0 already"),
        ({"reference_img_id": 1.5}, "'reference_img_id' has the value 1.5, which is no id"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, change, words):
    root = MADE.write_circo(tmp_path)
    rows = MADE.json.loads((root / "annotations/val.json").read_text())
    MADE.put_json(root / "annotations/val.json", [{**rows[0], **change}, rows[1]])
    with pytest.raises(DataError, match=words):
        read(root)


def test_an_image_list_without_images_is_refused(tmp_path):
    root = MADE.write_circo(tmp_path)
    MADE.put_json(root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json", {"licenses": []})
    with pytest.raises(DataError, match="has no list `images`"):
        read(root)


@published
def test_the_published_files_have_their_sizes_and_properties():
    val, test = (read(MADE.SHARED / "circo", split=split) for split in ("val", "test"))
    assert (len(val.queries), len(test.queries)) == (220, 800)
    for dataset in (val, test):
        assert [q.query_id for q in dataset.queries] == [str(number) for number in range(len(dataset.queries))]
    counts = [len(q.target_ids) for q in val.queries]
    assert (min(counts), max(counts), round(sum(counts) / 220, 2)) == (1, 14, 4.16)
    assert {tag for q in val.queries for tag in q.tags} == set(ASPECTS)
    assert not any(q.reference_id in q.target_ids for q in val.queries) and not any(q.target_ids for q in test.queries)
