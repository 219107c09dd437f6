"""MegaPairs' lines: every text with every target is a triplet; what is wrong names its line and key."""

import json

import pytest

from cirray.core.errors import DataError
from cirray.data.config import CirrConfig, DataConfig, MegaPairsConfig
from cirray.data.own_keys import own_keys
from cirray.data.readers import read_dataset
from cirray.pipelines.data.datasets import list_images
from cirray.types import Triplet

LINE = {
    "q_img": "part-0/1.jpg",
    "q_texts": ["at night", "  with  a dog\u2028"],
    "t_img": "part-0/2.jpg",
    "hns": ["part-0/1.jpg", "part-1/3.jpg"],
}
ALONE = {**LINE, "hns": []}
OWN = Triplet("mine", "a", "b", "older", None, "val", "mtst", "fam", 0.5, "edit")


def written(folder, *lines, name="train.jsonl"):
    """A file of these lines; its folder's data."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), "utf-8")
    return DataConfig(format="megapairs", megapairs=MegaPairsConfig(root=str(folder)))


def test_each_text_is_a_triplet_with_positives_and_hard_negatives_and_texts_stay_as_written(tmp_path):
    several = {**LINE, "q_texts": "older", "t_img": ["part-0/2.jpg", "part-1/2.png"]}
    dataset = read_dataset(written(tmp_path, LINE, several))
    assert [(row.triplet_id, row.target_id, row.modification) for row in dataset.triplets] == [
        ("train-1-0", "part-0/2", "at night"), ("train-1-1", "part-0/2", LINE["q_texts"][1]),
        ("train-2", "part-0/2", "older"),
    ]  # fmt: skip
    assert dataset.images.path("part-1/2") == tmp_path / "part-1" / "2.png"
    assert {row.group_id for row in dataset.triplets} == {"part-0/1"}
    assert [row.positive_ids for row in dataset.triplets] == [(), (), ("part-1/2",)]
    assert {row.negative_ids for row in dataset.triplets} == {("part-0/1", "part-1/3")}
    assert len(list_images(written(tmp_path, LINE), ("labelled",)).ids) == 3


def test_a_file_s_name_says_its_split_and_lines_without_a_change_are_left_out(tmp_path):
    blank, unmoved = {**LINE, "q_texts": [" "]}, {**LINE, "t_img": LINE["q_img"], "q_texts": ["x"]}
    written(tmp_path, blank, unmoved)
    dataset = read_dataset(written(tmp_path, {**LINE, "q_texts": ["x"]}, name="val-0.jsonl"))
    assert [(row.triplet_id, row.split) for row in dataset.triplets] == [("val-0-1", "val")]
    assert any("2 triplets left out" in note and "train.jsonl, line 1" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q_img": None}, "key 'q_img' has the value None"),
        ({"q_texts": [3]}, "key 'q_texts' has the value 3, which is not a text"),
        ({"hns": "one.jpg"}, "key 'hns' has the value 'one.jpg', which is not a list"),
        ({"cirray": {"wait": 1}, "q_texts": ["x"]}, "cirray: Unknown key 'wait'. Did you mean 'weight'"),
        ({"cirray": {"target_id": "b"}, "q_texts": ["x"]}, "key 'hns' has 2 images, and `negative_ids` 0"),
        (
            {"cirray": {"negative_ids": "b"}, "q_texts": ["x"]},
            "cirray: key 'negative_ids' has the value 'b', which is not a list",
        ),
        ({"cirray": {"weight": -1}, "q_texts": ["x"]}, "cirray: key 'weight' has the value -1; at least 0"),
        ({"cirray": {"source": 3}, "q_texts": ["x"]}, "cirray: key 'source' has the value 3, which is not a text"),
    ],
)
def test_what_is_wrong_names_file_line_and_key(tmp_path, change, words):
    with pytest.raises(DataError) as caught:
        read_dataset(written(tmp_path, LINE, {**LINE, **change}))
    assert "train.jsonl', line 2" in str(caught.value) and words in str(caught.value)


def test_a_key_that_is_missing_a_broken_line_and_an_empty_folder_are_told(tmp_path):
    with pytest.raises(DataError, match="line 1: key 't_img' is missing; the entry has: q_img, q_texts, hns"):
        read_dataset(written(tmp_path, {name: LINE[name] for name in ("q_img", "q_texts", "hns")}))
    (tmp_path / "train.jsonl").write_text('{"q_img": \n')
    with pytest.raises(DataError, match="line 1: not JSON"):
        read_dataset(written(tmp_path, name="other.txt"))
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds no file '\*.jsonl'; correct the root"):
        read_dataset(written(tmp_path, name="other.txt"))


def test_two_triplets_or_pictures_of_one_id_are_refused(tmp_path):
    line = {**ALONE, "q_texts": ["x"], **own_keys(OWN)}
    with pytest.raises(DataError, match="'mine' appears 2 times"):
        read_dataset(written(tmp_path, line, line))
    other = {**ALONE, "q_img": "other.jpg", "q_texts": ["y"], **own_keys(OWN)}
    with pytest.raises(DataError, match="'a' appears 2 times in the pictures"):
        read_dataset(written(tmp_path, line, other))


def test_cirr_s_entries_name_the_key_that_is_wrong(tmp_path):
    (tmp_path / "captions").mkdir()
    (tmp_path / "image_splits").mkdir()
    (tmp_path / "image_splits" / "split.rc2.train.json").write_text('{"a": "./a.png", "b": "./b.png"}')
    entry = {
        "pairid": 0, "reference": "a", "target_hard": "b", "target_soft": {"b": 1.0}, "caption": "x",
        "img_set": {"id": 0, "members": ["a", "b"]}, "cirray": {"weight": "heavy"},
    }  # fmt: skip
    (tmp_path / "captions" / "cap.rc2.train.json").write_text(json.dumps([entry]))
    data = DataConfig(format="cirr", cirr=CirrConfig(root=str(tmp_path), split="train"))
    with pytest.raises(DataError, match="entry 0, cirray: key 'weight' has the value 'heavy', which is not a number"):
        read_dataset(data)
