import csv
import json
import subprocess
import sys

import pytest
from PIL import Image

from cirray.core.config import load_config
from cirray.core.errors import ConfigError, DataError
from cirray.data.config import DataConfig, FolderConfig
from cirray.data.folder import read_folder
from cirray.data.readers import READERS, read_dataset


def put_images(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(path)


def put_lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def read(root, **options):
    return read_folder(FolderConfig(root=str(root), **options))


@pytest.fixture
def mine(tmp_path):
    put_images(tmp_path / "labelled", "a.png", "b.jpg", "deep/c.webp")
    put_images(tmp_path / "pool", "p1.gif", "p2.bmp")
    put_images(tmp_path / "gallery", "g1.PNG", "g2.jpeg")
    put_lines(tmp_path / "triplets.jsonl", {"reference": "a", "target": "b", "modification": "make it blue"})
    return tmp_path


def test_a_world_reads_back_whole(world, small_config):
    dataset = read_dataset(DataConfig(folder=FolderConfig(root=str(world))))
    assert dataset.name == "shapes" and len(dataset.images) == 157 and len(dataset.pool_ids) == 32
    assert (len(dataset.split("train")), len(dataset.split("val"))) == (48, 16)
    assert len(dataset.queries) == 40 and len(dataset.gallery_ids) == 45 and len(dataset.captions) == 60
    triplet = dataset.split("train")[0]
    assert triplet.group_id == "lab-00000" and triplet.edit and triplet.reverse_modification is None
    assert {query.target_ids[0] for query in dataset.queries} <= set(dataset.gallery_ids)
    assert all(dataset.images.path(image_id).is_file() for image_id in dataset.images)
    assert dataset.protocol.describe().startswith("shapes/test: 45 gallery images; own reference removed")
    assert "157 images" in dataset.describe()


def test_ids_are_paths_below_the_folder_without_suffix(mine):
    dataset = read(mine)
    assert dataset.images.ids == ("a", "b", "deep/c", "p1", "p2", "g1", "g2")
    assert dataset.gallery_ids == ("g1", "g2") and dataset.triplets[0].group_id == "a"
    with pytest.raises(DataError, match="Did you mean 'deep/c'"):
        dataset.images.path("deep/d")


@pytest.mark.parametrize("name", ["b", "b.jpg", "labelled/b.jpg", "./labelled/b", "labelled\\b.jpg"])
def test_a_file_may_name_an_image_in_several_ways(mine, name):
    put_lines(mine / "triplets.jsonl", {"reference": "a", "target": name, "modification": "make it blue"})
    assert read(mine).triplets[0].target_id == "b"


def test_csv_and_jsonl_read_alike(mine):
    expected = read(mine).triplets
    (mine / "triplets.jsonl").unlink()
    with (mine / "triplets.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream).writerows([["reference", "target", "modification"], ["a", "b", " make  it blue "]])
    assert read(mine).triplets == expected


def test_a_folder_of_images_alone_is_a_gallery_and_a_pool(tmp_path):
    put_images(tmp_path, "x.png", "sub/y.jpg", ".hidden.png", ".cache/z.png")
    (tmp_path / "notes.txt").write_text("hello")
    dataset = read(tmp_path)
    assert dataset.gallery_ids == dataset.pool_ids == ("x", "sub/y")
    assert dataset.triplets == () and dataset.queries == () and dataset.name == tmp_path.name


def test_without_a_gallery_folder_queries_search_all_images(mine):
    (mine / "gallery").rename(mine / "pool" / "more")
    assert read(mine).gallery_ids == ()
    put_lines(mine / "queries.jsonl", {"reference": "a", "target": ["b", "p1"], "modification": "blue"})
    dataset = read(mine)
    assert set(dataset.gallery_ids) == set(dataset.images.ids)
    assert dataset.queries[0].target_ids == ("b", "p1") and dataset.queries[0].query_id == "line-1"


def test_parts_may_lie_elsewhere_and_share_a_folder(mine, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    put_images(other, "q.png")
    dataset = read(mine, gallery=str(other), pool="labelled")
    assert dataset.gallery_ids == ("q",) and dataset.pool_ids == ("a", "b", "deep/c")


def test_all_optional_columns_are_kept(mine):
    row = {
        "reference": "a",
        "target": "b",
        "modification": "x",
        "reverse_modification": "y",
        "split": "val",
        "group": "g",
        "edit": "add",
        "weight": 0.5,
        "triplet_id": "t1",
    }
    put_lines(mine / "triplets.jsonl", row, "", {**row, "triplet_id": "t2", "reverse_modification": None})
    first, second = read(mine).triplets
    assert (first.reverse_modification, first.split, first.group_id, first.edit) == ("y", "val", "g", "add")
    assert (first.weight, first.triplet_id, second.reverse_modification) == (0.5, "t1", None)


GOOD = {"reference": "a", "target": "b", "modification": "blue"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{**GOOD, "target": "zz"}], r"line 1: target image 'zz' is not in"),
        ([GOOD, {**GOOD, "modification": "  "}], r"line 2: column 'modification' is empty"),
        ([{"reference": "a", "target": "b"}], "column 'modification' is missing; the line has: reference, target"),
        ([{**GOOD, "target": "a.png"}], "same image 'a'"),
        ([GOOD, "{oops"], "line 2: not JSON"),
        ([GOOD, "[1]"], "line 2: a JSON object is needed"),
        ([{**GOOD, "split": "valid"}], "Unknown split 'valid'.*Did you mean 'val'"),
        ([GOOD, GOOD], "same triplet as line 1"),
        ([{**GOOD, "weight": -1}], "'weight' has the value -1"),
        ([{**GOOD, "modification": ["a"]}], "not a text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_row_is_named_with_file_line_and_remedy(mine, rows, words):
    put_lines(mine / "triplets.jsonl", *rows)
    with pytest.raises(DataError, match=words) as caught:
        read(mine)
    assert "triplets.jsonl" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("reference,target\na,b\n", "line 1: column 'modification' is missing; the header has: reference, target"),
        ("reference,target,modification\na,b,blue, not red\n", "line 2: 3 columns expected, more found"),
        ("reference,target,modification\na,b,\n", "line 2: column 'modification' is empty"),
        ("reference,target,modification\na\n", "line 2: column 'target' is empty"),
        ('reference,target,modification\na,b,"blue\n', "not a CSV line"),
        ("", "line 1: column 'reference' is missing"),
    ],
)
def test_a_bad_csv_is_named_with_its_line(mine, text, words):
    (mine / "triplets.jsonl").unlink()
    (mine / "triplets.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read(mine)


def test_ids_used_twice_are_refused(mine):
    put_lines(mine / "queries.jsonl", {**GOOD, "query_id": "q"}, {**GOOD, "query_id": "q"})
    with pytest.raises(DataError, match="line 2: query_id 'q' is used twice"):
        read(mine)
    put_lines(mine / "queries.jsonl", {**GOOD, "query_id": "q"})
    put_lines(mine / "captions.jsonl", {"image": "a", "caption": "x"}, {"image": "a.png", "caption": "y"})
    with pytest.raises(DataError, match="image 'a' has a caption already"):
        read(mine)
    (mine / "captions.jsonl").unlink()
    put_images(mine / "pool", "a.png")
    with pytest.raises(DataError, match="Two images are called 'a.png': .*labelled/a.png' and .*pool/a.png'"):
        read(mine)


def test_a_query_whose_target_is_its_reference_or_missing_is_refused(mine):
    for target, words in (("a", "same image"), ([], "empty list"), ("zz", "'zz'")):
        put_lines(mine / "queries.jsonl", {"reference": "a", "target": target, "modification": "x"})
        with pytest.raises(DataError, match=words):
            read(mine)


def test_missing_roots_folders_and_files_are_named(mine, tmp_path_factory):
    with pytest.raises(DataError, match="does not exist; give the folder"):
        read(mine / "nowhere")
    with pytest.raises(DataError, match=r"correct `folder\.gallery`"):
        read(mine, gallery="galery")
    with pytest.raises(DataError, match=r"correct `folder\.queries`"):
        read(mine, queries="q.csv")
    with pytest.raises(DataError, match="No images"):
        read(tmp_path_factory.mktemp("empty"))
    (mine / "triplets.csv").write_text("x")
    with pytest.raises(DataError, match="keep one"):
        read(mine)


def test_text_that_is_not_utf8_is_refused(mine):
    (mine / "triplets.jsonl").write_bytes(b'{"reference": "\xff"}')
    with pytest.raises(DataError, match="not UTF-8"):
        read(mine)


def test_an_unknown_format_answers_with_the_known_ones():
    assert "folder" in READERS.names()
    with pytest.raises(ConfigError, match="Did you mean 'folder'"):
        read_dataset(load_config(DataConfig, {"format": "foldr"}))


def test_reading_data_loads_neither_torch_nor_ray(world):
    code = (
        "import sys; from cirray.data.folder import read_folder; from cirray.data.config import FolderConfig; "
        f"import cirray.data.shapes.world, cirray.transforms; "
        f"read_folder(FolderConfig(root={str(world)!r})); print([m for m in ('torch', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
