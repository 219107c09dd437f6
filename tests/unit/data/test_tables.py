"""Tables as people save them: names, packings, encodings, nulls, and the line that an error names."""

import bz2
import gzip
import json
import lzma
import runpy
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cirray.core.errors import DataError
from cirray.core.texts import parse_json, whole
from cirray.data.annotations import load_json
from cirray.data.config import CirrConfig, DataConfig, FolderConfig
from cirray.data.folder import read_folder
from cirray.data.readers import read_dataset
from cirray.evaluation.submissions import decode

MADE = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "benchmarks.py")))
ROWS = [
    {"reference": "a", "target": "b", "modification": "make it blue, à la plage"},
    {"reference": "b", "target": "c", "modification": "two\nlines"},
]
CSV = 'reference,target,modification\na,b,"make it blue, à la plage"\nb,c,"two\nlines"\n'


def split_at(mark):
    """The same table with another mark between cells."""
    return (
        CSV.replace(",b,", f"{mark}b{mark}")
        .replace(",c,", f"{mark}c{mark}")
        .replace("e,t", f"e{mark}t")
        .replace("t,m", f"t{mark}m")
    )


LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
LIST = json.dumps(ROWS, indent=1, ensure_ascii=False)


@pytest.fixture
def mine(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
    return tmp_path


def read(root, **options):
    return read_folder(FolderConfig(root=str(root), **options))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("queries.CSV", CSV.encode()),
        ("Queries.csv", CSV.encode("utf-8-sig")),
        ("queries.csv.gz", gzip.compress(CSV.encode())),
        ("queries.CSV.GZ", gzip.compress(CSV.encode("utf-8-sig"))),
        ("queries.csv.bz2", bz2.compress(CSV.encode())),
        ("queries.jsonl.xz", lzma.compress(LINES.encode())),
        ("queries.tsv", split_at("\t").encode("utf-16")),
        ("queries.csv", split_at(";").encode()),
        ("queries.csv", b"sep=|\r\n" + split_at("|").encode()),
        ("queries.csv", 2 * b"\xef\xbb\xbf" + CSV.encode()),
        ("queries.json", LIST.encode()),
        ("queries.json", LIST.encode("utf-16")),
        ("queries.JSON", LIST.encode("utf-8-sig")),
        ("queries.json", LINES.encode()),
        ("queries.ndjson", LINES.encode("utf-8-sig")),
        ("queries.json.gz", gzip.compress(LIST.encode())),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_table_is_read_whatever_its_suffix_packing_and_encoding(mine, name, data):
    (mine / name).write_bytes(data)
    found = [(q.reference_id, q.target_ids, q.modification) for q in read(mine).queries]
    assert found == [("a", ("b",), "make it blue, à la plage"), ("b", ("c",), "two lines")]
    assert len(read(mine, queries=name).queries) == 2


@pytest.mark.parametrize(
    "name", ["queries.xlsx", "queries.txt", "triplets.csv.zip", "captions.yaml", "Queries.feather"]
)
def test_a_table_that_is_not_read_is_named_with_what_would_be(mine, name):
    (mine / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=rf"{name}' is not read: a table is a file that ends in .*\.csv.*\.parquet"):
        read(mine)
    (mine / f"{name.split('.')[0].lower()}.jsonl").write_text("")
    assert read(mine).queries == ()


def test_pictures_called_like_a_table_are_no_tables(mine):
    Image.new("RGB", (16, 16)).save(mine / "queries.png")
    assert "queries" in read(mine).images


@pytest.mark.parametrize("name", ["queries.csv.gz", "queries.csv.xz", "queries.csv.bz2"])
def test_a_packed_table_that_is_damaged_is_an_error_in_words(mine, name):
    packed = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}[name.split(".")[-1]](CSV.encode())
    for data in (packed[:-20], b"reference,target"):
        (mine / name).write_bytes(data)
        with pytest.raises(DataError, match=f"{name}' cannot be read"):
            read(mine)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('reference,target,modification\na,b,x\na,c,"y" z\n', 3),
        ('reference,target,modification\na,b,"one\ntwo\nthree"\na,c,"y" z\n', 5),
        ('reference,target,modification\na,b,"one\ntwo" z\na,c,x\n', 3),
        ('reference,target,modification\na,b,x\na,c,"never closed\nb,c,x\nc,a,x\n', 3),
        ('reference,target,modification\n\na,b,"one\ntwo"\na,zz,x\n', 5),
        ('reference,target,modification\na,b,"one\ntwo"\na,c,"",4,5\n', 4),
        ('"reference","target","modi\nfication"\na,b,x\n', 1),
        ("reference,target,modification,target\na,b,x,c\n", 1),
        ("sep=,\nreference,target,modification\na,b,x\na,zz,x\n", 4),
    ],
)
def test_a_csv_error_names_the_line_of_the_fault(mine, text, line):
    (mine / "queries.csv").write_text(text)
    with pytest.raises(DataError, match=rf"queries.csv', line {line}: "):
        read(mine)


def test_an_index_column_without_a_name_is_skipped(mine):
    (mine / "queries.csv").write_text(",reference,target,modification\n0,a,b,x\n1,b,c,y\n")
    assert [q.modification for q in read(mine).queries] == ["x", "y"]


@pytest.mark.parametrize("null", [None, float("nan")])
@pytest.mark.parametrize("column", ["reference", "target", "modification"])
def test_a_null_costs_its_own_row_only_which_is_counted_and_named(mine, column, null):
    rows = [*ROWS, {**ROWS[0], column: null, "modification": null if column == "modification" else "x"}]
    for part in ("queries", "triplets"):
        (mine / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (mine / "captions.jsonl").write_text('{"image": "a", "caption": null}\n{"image": "b", "caption": "a dog"}\n')
    dataset = read(mine)
    assert (len(dataset.queries), len(dataset.triplets), dataset.captions) == (2, 2, {"b": "a dog"})
    assert len(dataset.notes) == 1 and "3 rows left out" in dataset.notes[0]
    places = ("queries.jsonl line 3", "triplets.jsonl line 3", "captions.jsonl line 1")
    assert all(place in dataset.notes[0] for place in places)


def test_a_null_in_parquet_is_one_too(mine):
    rows = {"reference": ["a", "b"], "target": ["b", None], "modification": ["x", "y"]}
    pq.write_table(pa.table(rows), mine / "queries.parquet")
    dataset = read(mine)
    assert len(dataset.queries) == 1 and "queries.parquet row 2" in dataset.notes[0]


def test_numbers_that_a_null_beside_them_made_floats_are_whole_again(mine):
    for name in ("7", "8"):
        Image.new("RGB", (16, 16)).save(mine / f"{name}.png")
    rows = {"reference": [7.0, None], "target": [8.0, 7.0], "modification": ["x", "y"]}
    pq.write_table(pa.table(rows), mine / "queries.parquet")
    (query,) = read(mine).queries
    assert (query.reference_id, query.target_ids) == ("7", ("8",))


MARKED = [lambda text: text.encode("utf-8-sig"), lambda text: text.encode("utf-16"), lambda text: text.encode("utf-32")]


@pytest.mark.parametrize("save", MARKED)
def test_json_with_a_byte_order_mark_is_read_everywhere(tmp_path, save):
    (tmp_path / "a.json").write_bytes(save('{"à": [1]}'))
    assert load_json(tmp_path / "a.json") == {"à": [1]} == decode(save('{"à": [1]}'), "a.json")
    root = MADE.write_cirr(tmp_path / "cirr")
    plain = read_dataset(DataConfig(format="cirr", cirr=CirrConfig(root=str(root))))
    for path in root.rglob("*.json"):
        path.write_bytes(save(path.read_text(encoding="utf-8")))
    assert read_dataset(DataConfig(format="cirr", cirr=CirrConfig(root=str(root)))).queries == plain.queries


def test_half_of_a_surrogate_pair_becomes_the_replacement_character_and_whole_ones_stay():
    cut, whole_one = "a dog \\ud83d", "a dog \\ud83d\\ude00"
    assert parse_json(f'["{cut}", {{"{cut}": "{whole_one}"}}]') == [
        "a dog \ufffd",
        {"a dog \ufffd": "a dog \U0001f600"},
    ]
    assert whole("\udce9 x") == "\ufffd x" and whole("à\U0001f600") == "à\U0001f600"
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


NULLS = {
    "cirr": ("cirr/captions/cap.rc2.val.json", "caption", "reference"),
    "fashioniq": ("captions/cap.dress.val.json", "", "candidate"),
    "circo": ("annotations/val.json", "relative_caption", "target_img_id"),
    "genecis": ("genecis/focus_object.json", "condition", "target"),
    "shoes": ("relative_captions_shoes.json", "RelativeCaption", "ImageName"),
    "lasco": ("downloads/lasco_val.json", "query-text", "query-image"),
}


@pytest.mark.parametrize("name", NULLS)
def test_a_null_in_a_benchmark_s_file_is_a_blank_text_or_one_entry_left_out(tmp_path, name):
    file, text, image = NULLS[name]
    root = getattr(MADE, f"write_{name}")(tmp_path)
    whole_set = read_dataset(config_of(name, root))
    rows = json.loads((root / file).read_text(encoding="utf-8"))
    at = next(at for at in range(len(rows)) if name != "shoes" or "pumps_2" in rows[at]["ImageName"])
    said = {text: None} if text else {"captions": [None, "is blue"]}
    MADE.put_json(root / file, [{**row, **said} if n == at else row for n, row in enumerate(rows)])
    blank = read_dataset(config_of(name, root))
    assert len(blank.queries) == len(whole_set.queries) and any("blank" in n or "empty" in n for n in blank.notes)
    MADE.put_json(root / file, [{**row, image: None} if n == at else row for n, row in enumerate(rows)])
    left = read_dataset(config_of(name, root))
    assert len(left.queries) == len(whole_set.queries) - 1
    assert any("left out because an image is null" in note and f"entry {at}" in note for note in left.notes)


def config_of(name, root):
    return DataConfig.model_validate({"format": name, name: {"root": str(root)}})
