"""Parquet tables, Hugging Face folders and WebDataset shards: the same triplets whatever they come in."""

import io
import json
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import DataConfig, FolderConfig, HuggingFaceConfig, WebDatasetConfig
from cirray.data.folder import read_folder
from cirray.data.huggingface import read_huggingface
from cirray.data.images import open_image, open_place
from cirray.data.webdataset import read_samples, read_webdataset

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(colour, size=(20, 20)):
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


RED, BLUE, GREEN = png((255, 0, 0)), png((0, 0, 255)), png((0, 255, 0))


def colour(dataset, image_id):
    return open_place(dataset.images.place(image_id)).getpixel((3, 3))


def save_split(folder, table, files=2):
    """What `Dataset.save_to_disk` writes: Arrow streams, `state.json`."""
    folder.mkdir(parents=True)
    rows = -(-table.num_rows // files)
    names = []
    for number in range(files):
        names.append(f"data-{number:05d}-of-{files:05d}.arrow")
        part = table.slice(number * rows, rows)
        with pa.OSFile(str(folder / names[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    state = {"_data_files": [{"filename": name} for name in names], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))


def triplet_table(**extra):
    sides = {
        "reference": [
            {"bytes": RED, "path": "r.png"},
            {"bytes": RED, "path": "r.png"},
            {"bytes": BLUE, "path": "b.png"},
        ],
        "target": [{"bytes": BLUE, "path": "b.png"}, {"bytes": GREEN, "path": None}, {"bytes": BLUE, "path": "b.png"}],
    }
    columns = {name: pa.array(values, IMAGE) for name, values in sides.items()}
    return pa.table({**columns, "modification": ["make it blue", "à green", "same"], **extra})


@pytest.fixture
def saved(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save_split(tmp_path / "hf" / "train", triplet_table())
    save_split(tmp_path / "hf" / "test", triplet_table().slice(0, 2), files=1)
    return tmp_path / "hf"


def put_shard(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    put_shard(tmp_path / "wds" / "a-0.tar", [("p/red.png", RED), ("p/red.txt", b"a red one"), ("blue.png", BLUE)])
    put_shard(
        tmp_path / "wds" / "a-1.tar",
        [
            ("t0.reference.png", RED), ("t0.target.png", GREEN), ("t0.txt", "à green\n".encode()),
            ("t1.json", b'{"reference": "p/red", "target": "blue", "modification": "make it blue"}'),
            ("green.png", GREEN), ("green.json", b'{"reference": "blue", "modification": "greener"}'),
            ("empty.cls", b"7"), ("blank.json", b'{"reference": "blue", "target": "p/red"}'),
        ],
    )  # fmt: skip
    return tmp_path / "wds"


def test_parquet_tables_read_like_jsonl(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    rows = {"reference": ["a", "b"], "target": ["b", "c"], "modification": ["make  it blue", "à la plage"],
            "split": ["train", "val"], "weight": [0.5, None]}  # fmt: skip
    pq.write_table(pa.table(rows), tmp_path / "triplets.parquet")
    pq.write_table(
        pa.table({"reference": ["a"], "target": [["b", "c"]], "modification": ["x"]}), tmp_path / "queries.parquet"
    )
    found = read_folder(FolderConfig(root=str(tmp_path)))
    (tmp_path / "triplets.parquet").unlink()
    lines = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
    (tmp_path / "triplets.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert found.triplets == read_folder(FolderConfig(root=str(tmp_path))).triplets and len(found.triplets) == 2
    assert found.queries[0].target_ids == ("b", "c")


def test_a_parquet_file_that_is_damaged_or_lacks_a_column_is_named(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    pq.write_table(pa.table({"reference": ["a"], "modification": ["x"]}), tmp_path / "triplets.parquet")
    with pytest.raises(DataError, match="triplets.parquet': column 'target' is missing; the file has: reference"):
        read_folder(FolderConfig(root=str(tmp_path)))
    (tmp_path / "triplets.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_folder(FolderConfig(root=str(tmp_path)))


def test_a_hugging_face_folder_is_read_without_that_library_and_pictures_stay_inside(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    dataset = read_huggingface(HuggingFaceConfig(root=str(saved), queries="test"))
    rows = [(t.reference_id, t.target_id, t.modification) for t in dataset.triplets]
    assert rows == [("r", "b", "make it blue"), ("r", "train-1/target", "à green")]
    assert [colour(dataset, name) for name in ("r", "b", "train-1/target")] == [(255, 0, 0), (0, 0, 255), (0, 255, 0)]
    assert all(dataset.images.place(name).span for name in dataset.images)
    assert any("1 triplets left out" in note and "train-2" in note for note in dataset.notes)
    assert [q.query_id for q in dataset.queries] == ["test-0", "test-1"]
    assert set(q.target_ids[0] for q in dataset.queries) <= set(dataset.gallery_ids)


def test_pictures_of_one_name_that_differ_are_two_images(tmp_path):
    sides = [{"bytes": RED, "path": "image.png"}, {"bytes": png((9, 9, 9), (40, 40)), "path": "image.png"}]
    table = pa.table(
        {"reference": pa.array(sides, IMAGE), "target": pa.array(sides[::-1], IMAGE), "modification": ["x", "y"]}
    )
    save_split(tmp_path / "hf", table, files=1)
    dataset = read_huggingface(HuggingFaceConfig(root=str(tmp_path / "hf")))
    assert [(t.reference_id, t.target_id) for t in dataset.triplets] == [
        ("image", "train-0/target"), ("train-1/reference", "image"),
    ]  # fmt: skip
    assert colour(dataset, "train-1/reference") == (9, 9, 9)
    assert any("2 images share a name with another picture" in note for note in dataset.notes)


def test_ids_of_a_column_and_files_beside_the_table_are_used(tmp_path):
    ids = {"reference_id": ["one", "one", "three"], "target_id": [2, 4, 5]}
    save_split(tmp_path / "ids", triplet_table(**ids))
    dataset = read_huggingface(HuggingFaceConfig(root=str(tmp_path / "ids")))
    assert [(t.reference_id, t.target_id) for t in dataset.triplets] == [("one", "2"), ("one", "4"), ("three", "5")]
    names = pa.table({"reference": ["x.png"], "target": ["y.png"], "modification": ["m"]})
    save_split(tmp_path / "names", names, files=1)
    images = read_huggingface(HuggingFaceConfig(root=str(tmp_path / "names"))).images
    assert images.path("x.png") == tmp_path / "names" / "x.png"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"triplets": "training"}, "Unknown split 'training'. Did you mean 'train'"),
        ({"modification": "caption"}, "has no column 'caption'; it has: reference, target, modification"),
        ({"reference": "modification", "target": "target", "modification": "target"}, "which is not a text"),
    ],
)
def test_a_wrong_split_or_column_is_named(saved, fields, words):
    with pytest.raises(DataError, match=words):
        read_huggingface(HuggingFaceConfig(root=str(saved), **fields))


def test_a_hub_id_without_the_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"'owner/name' from the hub needs the library `datasets`: pip .*cirray\[hub\]"):
        read_huggingface(HuggingFaceConfig(root="owner/name"))
    with pytest.raises(DataError, match="neither a folder of `save_to_disk` nor a hub id"):
        read_huggingface(HuggingFaceConfig(root="/no/such/folder"))


def test_what_the_library_itself_saves_is_read_alike(tmp_path):
    library = pytest.importorskip("datasets")
    table = triplet_table()
    features = library.Features(
        {"reference": library.Image(), "target": library.Image(), "modification": library.Value("string")}
    )
    library.Dataset.from_dict(table.to_pydict(), features=features).save_to_disk(str(tmp_path / "hf"))
    dataset = read_huggingface(HuggingFaceConfig(root=str(tmp_path / "hf")))
    assert [t.modification for t in dataset.triplets] == ["make it blue", "à green"]
    assert colour(dataset, "r") == (255, 0, 0)


def test_two_pictures_of_one_name_and_length_that_end_alike_are_both_kept(tmp_path):
    def bmp(colour):
        stream, image = io.BytesIO(), Image.new("RGB", (64, 64))
        image.paste(colour, (0, 0, 64, 20))  # rows lie bottom up: the top stands last
        image.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(stream, "BMP")
        return stream.getvalue()

    cells = [{"bytes": bmp(colour), "path": "22.05.bmp"} for colour in ("red", "blue")]
    assert cells[0]["bytes"][-4096:] == cells[1]["bytes"][-4096:]
    table = pa.table(
        {"reference": pa.array(cells[:1], IMAGE), "target": pa.array(cells[1:], IMAGE), "modification": ["x"]}
    )
    save_split(tmp_path / "hf", table, files=1)
    (row,) = read_huggingface(HuggingFaceConfig(root=str(tmp_path / "hf"))).triplets
    assert (row.reference_id, row.target_id) == ("22.05", "train-0/target")


def test_arrow_files_compressed_inside_are_refused(tmp_path):
    table = triplet_table()
    save_split(tmp_path / "hf", table, files=1)
    path = next((tmp_path / "hf").glob("*.arrow"))
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match="is compressed inside"):
        read_huggingface(HuggingFaceConfig(root=str(tmp_path / "hf")))


def test_shards_give_pictures_captions_and_triplets_of_every_kind(shards):
    dataset = read_webdataset(WebDatasetConfig(root=str(shards)))
    assert dataset.pool_ids == ("p/red", "blue", "green") and dataset.captions == {"p/red": "a red one"}
    assert [(t.reference_id, t.target_id, t.modification) for t in dataset.triplets] == [
        ("t0/reference", "t0/target", "à green"), ("p/red", "blue", "make it blue"), ("blue", "green", "greener"),
    ]  # fmt: skip
    assert [colour(dataset, name) for name in ("p/red", "t0/target", "blue")] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert any("2 samples left out" in note and "'empty', 'blank'" in note for note in dataset.notes)
    assert read_webdataset(WebDatasetConfig(root=str(shards), part="gallery")).gallery_ids == dataset.pool_ids
    queries = read_webdataset(WebDatasetConfig(root=str(shards), triplets="query")).queries
    assert [q.query_id for q in queries] == ["t0", "t1", "green", "blank"]


def read_shard(folder, members, **fields):
    put_shard(folder / "a.tar", members)
    return read_webdataset(WebDatasetConfig(root=str(folder), **fields))


def test_several_pictures_of_a_key_are_all_kept_by_names_of_their_own(tmp_path):
    dataset = read_shard(
        tmp_path,
        [("d/22.05.jpg", RED), ("d/22.05.txt", b"may"), ("d/22.06.jpg", BLUE), ("a.jpg", RED), ("a.png", GREEN),
         ("a.jpg.png", BLUE), ("a.txt", b"both"), ("k.png", RED), ("k.mask.png", GREEN), ("k.txt", b"k")],
    )  # fmt: skip
    names = {
        "d/22.05": RED,
        "d/22.06": BLUE,
        "a.jpg": RED,
        "a.png": GREEN,
        "a.jpg.png": BLUE,
        "k": RED,
        "k.mask": GREEN,
    }
    assert set(dataset.pool_ids) == set(names)
    for name, data in names.items():
        assert colour(dataset, name) == open_image(data).getpixel((3, 3))
    assert dataset.captions == {"d/22.05": "may", "a.jpg": "both", "a.png": "both", "k": "k"}
    assert dataset.notes == ()


def test_members_are_pictures_by_their_first_bytes_and_any_picture_suffix(tmp_path):
    members = [("a.HEIC", b"x"), ("b", RED), ("c.image", BLUE), ("d.cls", b"7"), ("e.tif", GREEN), ("f.npy", b"\x93N")]
    dataset = read_shard(tmp_path, members)
    assert dataset.pool_ids == ("a", "b", "c.image", "e")
    assert any("2 samples left out" in note and "'d', 'f'" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("t.reference.jpg", RED), ("t.source.jpg", BLUE), ("t.target.jpg", RED)], "two pictures as reference"),
        ([("t.jpg", RED), ("t.png", BLUE), ("t.json", b'{"reference": "x"}')], "names a reference for two pictures"),
    ],
)
def test_pictures_that_would_be_the_same_part_of_a_triplet_are_refused(tmp_path, members, words):
    with pytest.raises(DataError, match=words):
        read_shard(tmp_path, members)


def test_members_whose_names_are_not_utf8_and_names_written_otherwise_are_found(tmp_path):
    told = {"reference": "caf\udce9", "target": "a b.png", "modification": "x"}
    members = [("caf\udce9.png", RED), ("a\u00a0b.png", BLUE), ("z.json", json.dumps(told).encode())]
    dataset = read_shard(tmp_path, members)
    assert dataset.pool_ids == ("caf%E9", "a\u00a0b") and colour(dataset, "caf%E9") == (255, 0, 0)
    assert [(t.reference_id, t.target_id) for t in dataset.triplets] == [("caf%E9", "a\u00a0b")]


def test_an_index_of_many_members_does_not_keep_their_headers(tmp_path, monkeypatch):
    put_shard(tmp_path / "a.tar", [(f"{number:05d}.png", b"x") for number in range(300)])
    kept = []
    real = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: kept.append(len(self.members)) or real(self))
    assert sum(1 for _ in read_samples(str(tmp_path / "a.tar"))) == 300
    assert max(kept) <= 1


def test_nulls_and_byte_order_marks_in_shards_cost_no_more_than_their_sample(tmp_path):
    marked = json.dumps({"reference": "a", "target": "b", "modification": "greener"}).encode("utf-8-sig")
    put_shard(
        tmp_path / "a.tar",
        [
            ("a.png", RED), ("a.json", b'{"caption": null}'), ("b.png", GREEN), ("b.txt", "\ufeffa green one".encode()),
            ("t0.json", marked), ("t1.json", b'{"reference": null, "target": "b", "modification": "m"}'),
            ("t2.json", b'{"reference": "b", "target": "a", "modification": null}'),
            ("t3.json", b'{"reference": "b", "target": "a", "modification": "cut \\ud83d"}'),
        ],
    )  # fmt: skip
    dataset = read_webdataset(WebDatasetConfig(root=str(tmp_path)))
    assert dataset.captions == {"b": "a green one"}
    assert [t.modification for t in dataset.triplets] == ["greener", "cut \ufffd"]
    assert any("2 samples left out" in note and "'t1', 't2'" in note for note in dataset.notes)
    queries = read_webdataset(WebDatasetConfig(root=str(tmp_path), triplets="query"))
    assert len(queries.queries) == 3 and any("'t2'" in note and "blank" in note for note in queries.notes)


def test_nulls_in_a_hugging_face_split_cost_no_more_than_their_row(tmp_path):
    sides = [{"bytes": RED, "path": "r.png"}, {"bytes": BLUE, "path": "b.png"}, None]
    columns = {
        "reference": [sides[0], sides[2], sides[0], sides[0]],
        "target": [sides[1], sides[1], sides[2], sides[1]],
    }
    arrays = {name: pa.array(values, IMAGE) for name, values in columns.items()}
    save_split(tmp_path / "hf", pa.table({**arrays, "modification": ["x", "y", "z", None]}), files=1)
    dataset = read_huggingface(HuggingFaceConfig(root=str(tmp_path / "hf"), triplets="t", queries="q"))
    assert [t.modification for t in dataset.triplets] == ["x"]
    assert [(q.query_id, q.modification) for q in dataset.queries] == [("q-0", "x"), ("q-3", "")]
    told = " ".join(dataset.notes)
    assert "3 triplets left out" in told and "2 queries left out because an image is null, e.g. 'q-1'" in told


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("x.png", RED), ("y.png", RED), ("x.png", RED)], "Image 'x' .* keys must be unique"),
        ([("x.json", b"{")], "'x.json' in .* is not JSON"),
        ([("x.json", b"[1]")], "is not a JSON object"),
        ([("x.txt", b"\xff\xfe")], "'x.txt' in .* is not UTF-8"),
        (
            [("x.json", b'{"reference": "a", "target": "b", "modification": "m"}')],
            "names the image 'a', which is in no",
        ),
        ([("x.png", RED), ("x.json", b'{"caption": ["a"]}')], r"has \['a'\] as 'caption', which is not a text"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path, members, words):
    put_shard(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=words):
        read_webdataset(WebDatasetConfig(root=str(tmp_path)))


def test_a_compressed_or_cut_shard_and_an_empty_folder_are_refused(shards, tmp_path):
    whole = (shards / "a-0.tar").read_bytes()
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.add(shards / "a-0.tar", "a-0.tar")
    with pytest.raises(DataError, match="z.tar' is compressed, damaged"):
        read_webdataset(WebDatasetConfig(root=str(tmp_path), shards="z.tar"))
    (shards / "a-0.tar").write_bytes(whole[:600])
    with pytest.raises(DataError, match="a-0.tar' is compressed, damaged"):
        read_webdataset(WebDatasetConfig(root=str(shards)))
    with pytest.raises(DataError, match="No file 'b-[*].tar' below"):
        read_webdataset(WebDatasetConfig(root=str(shards), shards="b-*.tar"))


@pytest.mark.parametrize("remote", [False, True])
def test_pictures_inside_shards_travel_through_the_embedding_pipeline(shards, remote):
    from cirray.pipelines.data.datasets import list_images
    from cirray.pipelines.features.actors import decode_images

    root = f"file://{shards}" if remote else str(shards)
    images = list_images(DataConfig(format="webdataset", webdataset=WebDatasetConfig(root=root)), ("pool", "labelled"))
    columns = decode_images({"image_id": images.ids, "place": images.places}, {"size": 16}, {"max_bytes": 10_000})
    assert not any(columns["error"]) and len(images.ids) == 5
    row = list(columns["image_id"]).index("t0/target")
    assert np.array_equal(columns["pixels"][row], np.full((16, 16, 3), (0, 255, 0), dtype=np.uint8))
    errors = decode_images({"image_id": images.ids, "place": images.places}, {"size": 16}, {"max_bytes": 10})["error"]
    assert all("larger than 10 bytes" in error for error in errors)


def test_pictures_inside_arrow_files_travel_through_the_embedding_pipeline(saved):
    from cirray.pipelines.data.datasets import list_images
    from cirray.pipelines.features.actors import decode_images

    data = DataConfig(format="huggingface", huggingface=HuggingFaceConfig(root=str(saved)))
    images = list_images(data, ("labelled",))
    columns = decode_images({"image_id": images.ids, "place": images.places}, {"size": 16}, {})
    assert not any(columns["error"]) and columns["pixels"][0].tolist() == [[[255, 0, 0]] * 16] * 16
