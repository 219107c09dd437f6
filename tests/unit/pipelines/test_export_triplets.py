"""`cirray export triplets`: triplets and their pictures as a data set that is read back as it was."""

import dataclasses
import json
import shutil

import published
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from made_artifacts import from_triplets, stage_of
from PIL import Image

from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.config import DataConfig, ImageLimits
from cirray.data.images import read_place
from cirray.data.readers import read_dataset
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.datasets import contents_of
from cirray.pipelines.data.world import run_world
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import ModelRun
from cirray.pipelines.search.models import run_model
from cirray.pipelines.texts import export as export_module
from cirray.pipelines.texts.config import ExportTripletsRun, ImportTripletsRun
from cirray.pipelines.texts.export import run_export_triplets
from cirray.pipelines.texts.importing import run_import_triplets
from cirray.pipelines.texts.layouts import write_files
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.inputs import read_inputs
from cirray.pipelines.training.train import run_train
from cirray.triplets.rows import StoredRows
from cirray.triplets.schema import rejected_table
from cirray.triplets.store import TripletStore, write_part

datasets = pytest.importorskip("datasets")
ALONE = {"ray": {"enabled": False}}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A world whose triplets stand in an artifact as generated ones, some held out, and their data set."""
    home = tmp_path_factory.mktemp("shared")
    world = {"labelled_families": 12, "heldout_families": 1, "pool_families": 0, "gallery_references": 2}
    run_world(WorldRun.model_validate({"shapes": world, "out": str(home / "world")}))
    rows = [
        dataclasses.replace(row, source="mtst", weight=0.5, split="val" if at % 7 == 0 else "train")
        for at, row in enumerate(read_dataset(data_of(home / "world")).triplets)
    ]
    stage = stage_of(home / "synthetic", "triplets")
    rows[1] = dataclasses.replace(
        rows[1], positive_ids=(rows[2].target_id,), negative_ids=(rows[8].target_id, rows[9].target_id)
    )
    table = from_triplets(rows, pair_id="p", generator="g", scores={"pair": 0.25}, logprob=-0.5)
    write_part(stage.work_uri, "part-00000", table, rejected_table([]))
    stage.publish({"triplets": len(rows)})
    run_export_triplets(run_of(home))
    return home


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What the library `datasets` converts, out of the way."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def data_of(root):
    return DataConfig.model_validate({"folder": {"root": str(root)}})


def shared(root):
    return DataConfig.model_validate({"format": "huggingface", "huggingface": {"root": str(root)}})


def run_of(home, **fields):
    given = {"triplets": str(home / "synthetic"), "data": data_of(home / "world"), "out": str(home / "out")}
    return ExportTripletsRun(**{**given, "license": "cc0-1.0", **fields})


def pictures_of(dataset, ids):
    return contents_of([dataset.images.place(name).text() for name in ids], ImageLimits())


def in_layout(layout, root, **fields):
    """Data of an exported layout."""
    return DataConfig.model_validate({"format": layout, layout: {"root": str(root), **fields}})


def same(dataset, home):
    """Whether triplets and the bytes of their pictures are those of the artifact and of the world."""
    wanted, world = TripletStore.open(home / "synthetic").read(), read_dataset(data_of(home / "world"))
    ids = sorted({name for row in wanted for name in (row.reference_id, row.target_id)})
    pictures = pictures_of(world, ids)
    mine, theirs = (sorted(rows, key=lambda row: row.triplet_id) for rows in (dataset.triplets, wanted))
    return mine == theirs and pictures_of(dataset, ids) == pictures and all(pictures)


def test_the_library_opens_the_folder_by_its_card_and_shows_the_pictures(home):
    triplets = datasets.load_dataset(str(home / "out"))  # the default configuration
    store = TripletStore.open(home / "synthetic")
    assert {split: len(rows) for split, rows in triplets.items()} == {
        split: len(store.read(split=split)) for split in ("train", "val")
    }
    assert triplets["val"][0]["scores"] == [{"name": "pair", "value": 0.25}]
    pictures = datasets.load_dataset(str(home / "out"), "images", split="train")
    assert isinstance(pictures[0]["image"], Image.Image) and pictures[0]["id"] in {
        name for row in store.read() for name in (row.reference_id, row.target_id)
    }
    card = DatasetCard.load(home / "out" / "README.md")
    assert card.data.license == "cc0-1.0" and f"{len(store.read()):,} triplets" in card.text


def test_triplets_and_pictures_come_back_equal_from_the_folder_and_from_the_hub_s_cache(home, tmp_path, monkeypatch):
    assert same(read_dataset(shared(home / "out")), home)
    cache = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    published.put_in_hub_cache(cache, "some/triplets", home / "out")
    (cache / "models--some--triplets").rename(cache / "datasets--some--triplets")
    assert same(read_dataset(shared("some/triplets")), home)


@pytest.mark.parametrize(("layout", "fields"), [("megapairs", {}), ("cirr", {"split": "train"})])
def test_files_of_other_programs_have_their_keys_and_come_back_equal(home, tmp_path, layout, fields, monkeypatch):
    monkeypatch.setattr("cirray.core.extras.find_spec", lambda name: None)  # the library `datasets` is not needed
    run_export_triplets(run_of(home, layout=layout, out=str(tmp_path / "out")))
    rows = [row for row in StoredRows([str(home / "synthetic")]) if row.split == "train"]
    if layout == "megapairs":
        entry = json.loads((tmp_path / "out" / "train.jsonl").read_text().splitlines()[0])
        assert entry["q_texts"] == [rows[0].modification] and len(entry["hns"]) == 2
        lines = map(json.loads, (tmp_path / "out" / "train.jsonl").read_text().splitlines())
        assert sum((tmp_path / "out" / path).is_file() for line in lines for path in line["hns"]) == 2
        assert (tmp_path / "out" / entry["q_img"]).is_file() and (tmp_path / "out" / entry["t_img"]).is_file()
    else:
        entry = json.loads((tmp_path / "out" / "captions" / "cap.rc2.train.json").read_text())[0]
        names = json.loads((tmp_path / "out" / "image_splits" / "split.rc2.train.json").read_text())
        assert (entry["caption"], entry["reference"]) == (rows[0].modification, rows[0].reference_id)
        assert (tmp_path / "out" / names[entry["target_hard"]]).is_file()
    back = in_layout(layout, tmp_path / "out", **fields)
    assert same(read_dataset(back), home)
    made = run_import_triplets(ImportTripletsRun(data=back, out=str(tmp_path / "imported")))
    imported = TripletStore.open(tmp_path / "imported").read()
    assert made.counts["triplets"] == len(imported) and set(imported) == set(read_dataset(back).triplets)
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert f"data.format={layout}" in card.text and "configs" not in card.data.to_dict()


def test_pictures_whose_ids_are_no_file_names_come_back_under_their_ids(tmp_path):
    png = (b"\x89PNG\r\n\x1a\nx", "")
    given = [("../up", *png), ("a", b"1", ".jpg"), ("a.jpg", b"2", ""), ("/root", *png), ("in/deep", b"3", ".webp")]
    paths = write_files(tmp_path / "out", given, lambda count: None)
    assert paths["a"] == "images/a.jpg" and paths["in/deep"] == "images/in/deep.webp"
    assert {name: (tmp_path / "out" / paths[name]).read_bytes() for name, *_ in given} == {
        name: data for name, data, _ in given
    }
    assert all(path.startswith("images/") and ".." not in path for path in paths.values())
    assert paths["../up"].endswith(".png") and sorted(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_split_that_cirr_has_not_is_refused_with_the_layouts_that_have_it(home, tmp_path):
    rows = [dataclasses.replace(row, split="test") for row in TripletStore.open(home / "synthetic").read()]
    stage = stage_of(tmp_path / "other", "triplets")
    write_part(stage.work_uri, "part-00000", from_triplets(rows), rejected_table([]))
    stage.publish({"triplets": len(rows)})
    told = f"{len(rows)} triplets are of the split 'test'; CIRR's layout has triplets of train and val. Use"
    with pytest.raises(DataError, match=told):
        run_export_triplets(run_of(home, layout="cirr", triplets=str(tmp_path / "other"), out=str(tmp_path / "out")))
    assert not (tmp_path / "out.partial").exists()


def test_a_changed_picture_or_triplet_is_another_data_set(home, tmp_path):
    first = run_export_triplets(run_of(home))
    shutil.copytree(home / "world", tmp_path / "world")
    changed = read_dataset(data_of(tmp_path / "world"))
    place = changed.images.path(first_reference(home))
    Image.new("RGB", (48, 48)).save(place)
    other = run_export_triplets(run_of(home, data=data_of(tmp_path / "world"), out=str(tmp_path / "out")))
    assert other.extra["digests"]["triplets"] == first.extra["digests"]["triplets"]
    assert other.extra["digests"]["pictures"] != first.extra["digests"]["pictures"]
    assert not same(read_dataset(shared(tmp_path / "out")), home)


def test_pictures_are_read_once_and_an_export_that_is_there_is_compared_with_them(home, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        export_module, "read_place", lambda place, *more: read.append(place.uri) or read_place(place, *more)
    )
    world = shutil.copytree(home / "world", tmp_path / "world")
    run = run_of(home, data=data_of(world), layout="megapairs", out=str(tmp_path / "out"))
    made = run_export_triplets(run)
    assert len(read) == len(set(read)) == made.counts["images"]
    assert run_export_triplets(run) == made and len(read) == 2 * made.counts["images"]
    place = read_dataset(data_of(world)).images.path(first_reference(home))
    Image.new("RGB", (48, 48)).save(place)
    with pytest.raises(ArtifactError, match="out"):
        run_export_triplets(run)
    place.unlink()
    place.symlink_to("gone.png")
    with pytest.raises(DataError, match=f"1 of the {made.counts['images']} pictures cannot be read, e.g. '"):
        run_export_triplets(run.model_copy(update={"out": str(tmp_path / "other")}))
    assert not [*tmp_path.glob("other*")]


def test_an_export_after_a_killed_one_begins_anew_with_the_same_names(home, tmp_path, monkeypatch):
    run = run_of(home, layout="megapairs", out=str(tmp_path / "out"))

    def stopped(*given):
        shutil.copytree(tmp_path / "out.partial", tmp_path / "left")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export_module, "write_megapairs", stopped)
        run_export_triplets(run)
    shutil.move(tmp_path / "left", tmp_path / "out.partial")  # a SIGKILL clears nothing
    made = run_export_triplets(run)
    files = [path for path in (tmp_path / "out" / "images").rglob("*") if path.is_file()]
    assert len(files) == made.counts["images"] and first_reference(home) in {path.stem for path in files}


def first_reference(home):
    return TripletStore.open(home / "synthetic").read()[0].reference_id


def test_training_reads_it_as_a_data_set(home, tmp_path):
    published.clip(tmp_path / "clip")
    run_model(ModelRun(source=str(tmp_path / "clip"), out=str(tmp_path / "opened")))
    data = shared(home / "out").given()
    embed = {"data": data, "tower": str(tmp_path / "opened"), "out": str(tmp_path / "features")}
    run_embed(validate(EmbedRun, {**embed, **ALONE}))
    training = {"objective": "finetune", "steps": 2, "batch": 8, "log_every": 1, "optimizer": {"lr": 1e-3}}
    fields = {
        "data": data, "features": [str(tmp_path / "features")], "towers": str(tmp_path / "opened"),
        "init": str(tmp_path / "opened"), "training": training, "out": str(tmp_path / "tuned"), **ALONE,
    }  # fmt: skip
    run = validate(TrainRun, fields)
    assert run_train(run).metrics["loss"] > 0
    assert read_inputs(run).sources == {"mtst": len(TripletStore.open(home / "synthetic").read(split="train"))}


def test_pictures_are_written_some_at_a_time_into_files_of_the_asked_size(home, tmp_path, monkeypatch):
    monkeypatch.setattr("cirray.pipelines.texts.export._TOGETHER", 4096)
    run = run_of(home, out=str(tmp_path / "out")).model_copy(update={"file_mb": 0.01})
    run_export_triplets(run)
    files = [pq.ParquetFile(path) for path in sorted((tmp_path / "out" / "images").iterdir())]
    groups = [file.metadata.row_group(at) for file in files for at in range(file.num_row_groups)]
    assert len(files) > 2 and len(groups) > len(files)
    assert max(group.total_byte_size for group in groups) < 2 * 4096
    assert same(read_dataset(shared(tmp_path / "out")), home)


def test_it_is_pushed_as_a_data_set_without_what_names_this_machine(home, tmp_path, monkeypatch):
    sent = {}

    class Hub:
        def create_repo(self, name, repo_type, private, exist_ok):
            sent["kind"] = (name, repo_type, private)

        def upload_folder(self, repo_id, repo_type, folder_path, ignore_patterns, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub", ignore=shutil.ignore_patterns(*ignore_patterns))

    monkeypatch.setattr("cirray.pipelines.weights.hub.HfApi", Hub)
    run_export_triplets(run_of(home, push="me/mine", out=str(tmp_path / "out")))
    assert sent["kind"] == ("me/mine", "dataset", True) and not (tmp_path / "hub" / "manifest.json").exists()
    assert 'load_dataset("me/mine", "triplets")' in (tmp_path / "hub" / "README.md").read_text()
    assert same(read_dataset(shared(tmp_path / "hub")), home)
    with pytest.raises(ConfigError, match="push='mine' is no hub id"):
        run_export_triplets(run_of(home, push="mine"))


def test_what_cannot_be_written_or_read_is_one_sentence(home, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "empty" / "a.png")
    bad = data_of(tmp_path / "empty")
    with pytest.raises(DataError, match="pictures that the triplets name are not in the data set, e.g. '.*Name it wi"):
        run_export_triplets(run_of(home, data=bad, out=str(tmp_path / "x")))
    with pytest.raises(ArtifactError, match="world|kind|artifact"):
        run_export_triplets(run_of(home, triplets=str(home / "world"), out=str(tmp_path / "x")))
    with pytest.raises(DataError, match="there is no triplet to import. Check `data`"):
        run_import_triplets(ImportTripletsRun(data=bad, out=str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
    copy = shutil.copytree(home / "out", tmp_path / "copy")
    shutil.rmtree(copy / "images")
    with pytest.raises(DataError, match=r"holds no images/\*.parquet"):
        read_dataset(shared(copy))
    (copy / "cirray.json").write_text('{"kind": "triplets", "format": 9}')
    with pytest.raises(DataError, match="has format 9; this release reads 1"):
        read_dataset(shared(copy))
    monkeypatch.setattr("cirray.core.extras.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cirray export triplets layout=datasets needs.*pip install 'cirray\[hub\]'"):
        run_export_triplets(run_of(home, out=str(tmp_path / "y")))
