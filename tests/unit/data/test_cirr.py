import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.core.config import load_config
from cirray.core.errors import ConfigError, DataError
from cirray.data.cirr import read_cirr
from cirray.data.config import CirrConfig, DataConfig
from cirray.data.readers import read_dataset

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
published = pytest.mark.skipif(not (MADE.SHARED / "cirr").is_dir(), reason="the published CIRR files are not here")


@pytest.fixture
def root(tmp_path):
    return MADE.write_cirr(tmp_path)


def read(root, **fields):
    return read_cirr(CirrConfig(root=str(root), **fields))


def change(root, split, edit):
    path = root / f"cirr/captions/cap.rc2.{split}.json"
    records = MADE.json.loads(path.read_text())
    edit(records)
    MADE.put_json(path, records)


def test_a_val_query_has_its_target_subset_and_soft_labels(root):
    dataset = read(root)
    names = MADE.cirr_names("val")
    query = dataset.queries[1]
    assert (query.query_id, query.reference_id, query.target_ids) == ("40", names[1], (names[2],))
    assert query.subset == tuple(names) and dict(query.soft) == {names[1]: 1.0, names[3]: 0.5, names[4]: -1.0}
    assert dataset.gallery_ids == tuple(names) and [q.query_id for q in dataset.queries] == ["12", "40", "41"]


def test_captions_are_kept_as_written(root):
    assert [q.modification for q in read(root).queries] == ["show  three dogs", "à la plage", "make it blue"]


def test_test1_has_no_targets_and_a_blank_caption_passes_and_is_noted(root):
    dataset = read(root, split="test1")
    assert all(query.target_ids == () and query.soft == () and len(query.subset) == 6 for query in dataset.queries)
    assert dataset.queries[2].modification == " "
    assert any("1 queries with a blank text" in note and "'41'" in note for note in dataset.notes)


def test_images_lie_where_the_split_file_says_and_may_be_missing(root):
    dataset = read(root, split="test1")
    name = MADE.cirr_names("train")[0]
    assert dataset.images.path(name) == root / "train" / "34" / f"{name}.png"
    assert dataset.images.path("dev-0-0-img0") == root / "dev" / "dev-0-0-img0.png"
    assert not dataset.images.path(name).exists()
    elsewhere = read(root, images="/srv/nlvr2")
    assert str(elsewhere.images.path("dev-0-0-img0")) == "/srv/nlvr2/dev/dev-0-0-img0.png"


def test_training_rows_pool_and_guard_keep_the_splits_apart(root):
    dataset = read(root)
    assert [t.triplet_id for t in dataset.split("train")] == ["cirr-train-12", "cirr-train-40", "cirr-train-41"]
    assert len(dataset.split("val")) == 3 and dataset.pool_ids == tuple(MADE.cirr_names("train"))
    assert dataset.guarded == set(MADE.cirr_names("val")) | set(MADE.cirr_names("test1"))
    assert not set(dataset.pool_ids) & dataset.guarded


def test_extended_captions_are_more_training_rows_without_the_placeholders(root):
    rows = [t for t in read(root, extended=True).split("train") if t.edit]
    assert [(t.modification, t.edit) for t in rows] == [
        ("a photo of dogs", "extended 0"),
        ("add a beach", "extended 3"),
    ]
    assert not [t for t in read(root).split("train") if t.edit]


def test_annotations_may_lie_at_the_root_itself(tmp_path):
    assert len(read(MADE.write_cirr(tmp_path, ".")).queries) == 3


def test_a_train_file_that_is_absent_is_said_and_one_of_the_split_is_an_error(root):
    (root / "cirr/captions/cap.rc2.train.json").unlink()
    dataset = read(root)
    assert not dataset.split("train") and any("cap.rc2.train.json is not here" in note for note in dataset.notes)
    with pytest.raises(DataError, match="There is no file .*cap.rc2.train.json"):
        read(root, split="train")


@pytest.mark.parametrize(
    ("labels", "metrics"),
    [
        ("hard", ("recall", "recall_subset", "cirr_avg")),
        ("soft", ("soft_recall", "soft_recall_subset")),
        ("soft_subset", ("recall", "soft_recall_subset")),
    ],
)
def test_the_label_rule_chooses_the_metrics_and_is_printed(root, labels, metrics):
    protocol = read(root, labels=labels).protocol
    assert protocol.metrics == metrics and protocol.ks == (1, 5, 10, 50)
    assert protocol.describe().startswith("CIRR/val: all 6 images of split.rc2.val.json; own reference removed")


def test_a_wrong_split_name_answers_with_the_right_ones():
    with pytest.raises(ConfigError, match="cirr.split.*'test'.*'train', 'val' or 'test1'"):
        load_config(DataConfig, {"format": "cirr"}, ["cirr.split=test"])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda rows: rows[1].pop("caption"), "entry 1: key 'caption' is missing; the entry has: pairid, reference"),
        (lambda rows: rows[1].update(pairid=12), "entry 1: pairid '12' is used by entry 0 already"),
        (lambda rows: rows[0].update(caption=7), "key 'caption' has the value 7, which is not a text"),
        (lambda rows: rows[0]["img_set"].pop("members"), "entry 0, img_set: key 'members' is missing"),
        (lambda rows: rows[0].update(target_soft={"x": "one"}), "'target_soft' has the value 'one'"),
        (lambda rows: rows.insert(0, 7), "entry 0: 7 found where an object is expected"),
    ],
)
def test_a_wrong_entry_is_named_with_the_remedy(root, edit, words):
    change(root, "val", edit)
    with pytest.raises(DataError, match=words):
        read(root)


def test_a_file_that_is_no_json_is_refused(root):
    (root / "cirr/captions/cap.rc2.val.json").write_text('[{"pairid": 1')
    with pytest.raises(DataError, match="cap.rc2.val.json.*not a JSON file"):
        read(root)


def test_integer_keys_and_text_keys_mean_the_same_query(root):
    change(root, "val", lambda rows: rows[0].update(pairid="12"))
    assert read(root).queries[0].query_id == "12"


def test_a_target_that_is_its_reference_is_kept_as_a_query_and_left_out_of_training(root):
    def same(rows):
        rows[0]["target_hard"] = rows[0]["reference"]

    change(root, "val", same)
    change(root, "train", same)
    dataset = read(root)
    assert dataset.queries[0].target_ids == (dataset.queries[0].reference_id,)
    assert [t.triplet_id for t in dataset.split("train")] == ["cirr-train-40", "cirr-train-41"]
    assert any("1 queries whose target is their reference" in note for note in dataset.notes)
    assert any("2 triplets left out" in note and "cirr-train-12" in note for note in dataset.notes)


def test_names_without_an_image_list_are_noted(root):
    change(root, "val", lambda rows: rows[0].update(target_hard="dev-999-0-img0"))
    assert any("1 images are named by captions but by no image list, e.g. 'dev-999" in n for n in read(root).notes)


def test_a_preset_fills_fields_that_nobody_gave(root):
    data = DataConfig(format="cirr", preset="covr", cirr=CirrConfig(root=str(root)))
    assert read_dataset(data).protocol.metrics == ("recall", "soft_recall_subset")
    hard = DataConfig(format="cirr", preset="covr", cirr=CirrConfig(root=str(root), labels="hard"))
    assert read_dataset(hard).protocol.metrics != ("recall", "soft_recall_subset")
    with pytest.raises(ValueError, match="Did you mean 'covr'"):
        DataConfig(preset="cover")
    with pytest.raises(ValueError, match="says nothing about format 'folder', only about: cirr"):
        DataConfig(preset="covr")


def test_the_writer_of_the_layout_and_the_reader_agree(world, tmp_path):
    from cirr_layout import write_cirr

    from cirray.data.config import FolderConfig
    from cirray.data.folder import read_folder

    source = read_folder(FolderConfig(root=str(world)))
    write_cirr(source, tmp_path / "c")
    dataset = read(tmp_path / "c")
    assert [(q.reference_id, q.target_ids[0], q.modification) for q in dataset.queries] == [
        (q.reference_id, q.target_ids[0], q.modification) for q in source.queries
    ]
    assert all(dataset.images.path(image).is_file() for image in dataset.images)


@published
def test_the_published_val_has_its_sizes_and_its_quirks():
    dataset = read(MADE.SHARED)
    queries = dataset.queries
    assert (len(queries), len(dataset.gallery_ids), len(dataset.pool_ids)) == (4181, 2297, 16939)
    assert len({q.reference_id for q in queries}) == 2165
    assert [q.query_id for q in queries if not q.modification.isascii()] == ["12236", "14793"]
    assert sum("  " in q.modification for q in queries) == 48
    assert len(queries) - len({(q.reference_id, q.modification) for q in queries}) == 6
    missing = [q for q in queries if q.target_ids[0] not in dict(q.soft)]
    assert len(missing) == 37 and all(dict(q.soft)[q.reference_id] == 1.0 for q in missing)
    assert sum(dict(q.soft).get(q.target_ids[0], 1.0) != 1.0 for q in queries) == 5
    assert sum(bool(set(dict(q.soft)) - set(q.subset)) for q in queries) == 261
    assert all(q.target_ids[0] in q.subset and q.target_ids[0] != q.reference_id for q in queries)
    assert set(q.target_ids[0] for q in queries) <= set(dataset.gallery_ids)
    assert dataset.images.path("train-11041-2-img0").as_posix().endswith("/train/34/train-11041-2-img0.png")


@published
def test_the_published_test1_has_one_blank_caption_and_no_targets():
    dataset = read(MADE.SHARED, split="test1")
    assert (len(dataset.queries), len(dataset.gallery_ids)) == (4148, 2315)
    assert [q.query_id for q in dataset.queries if not q.modification.strip()] == ["27098"]
    assert sum(not q.modification.isascii() for q in dataset.queries) == 1
    assert not any(q.target_ids for q in dataset.queries)


@published
def test_the_published_val_files_under_the_train_name_are_training_rows(tmp_path):
    for kind in ("captions/cap.rc2", "image_splits/split.rc2", "captions_ext/cap.ext.rc2"):
        source = MADE.SHARED / "cirr" / f"{kind}.val.json"
        for split in ("train", "val"):
            target = tmp_path / "cirr" / f"{kind}.{split}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    dataset = read(tmp_path, extended=True)
    assert len([t for t in dataset.split("train") if not t.edit]) == 4181
    assert len([t for t in dataset.split("train") if t.edit]) > 4181
    assert not any(t.modification.startswith("[c") for t in dataset.triplets)
