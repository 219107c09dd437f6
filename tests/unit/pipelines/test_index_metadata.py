"""Columns beside the pictures: read from any kind of file, joined by id or file name, and kept in the index."""

import json
from datetime import date

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_service

from cirray.core.errors import DataError
from cirray.index.store import open_index
from cirray.pipelines.search.metadata import metadata_for

IDS = ["a b/red", "blue", "plain/0001"]
FILES = {"a b/red": "a b/red.png", "blue": "blue.jpg", "plain/0001": "plain/0001.webp"}
CSV = (
    "file_name;price;sold;since;title\nblue.jpg;5;true;2025-01-02;Blue one\n0001.webp;7.5;false;;\ngone.png;1;true;;x\n"
)


def written(folder, name, content):
    place = folder / name
    place.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(place)


def test_a_csv_file_is_joined_by_file_name_and_its_types_are_found(tmp_path):
    table, notes = metadata_for(written(tmp_path, "m.csv", CSV), IDS, FILES)
    assert table.to_pylist() == [
        {"price": None, "sold": None, "since": None, "title": None},
        {"price": 5.0, "sold": True, "since": date(2025, 1, 2), "title": "Blue one"},
        {"price": 7.5, "sold": False, "since": None, "title": None},
    ]
    assert [note.partition(": ")[2] for note in notes] == [
        "1 of 3 rows name no image that is indexed", "1 of 3 images have no row",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["m.jsonl", "m.ndjson", "m.parquet", "m.csv", "m.tsv", "utf16.csv"])
def test_every_kind_of_file_gives_the_same_columns(tmp_path, name):
    rows = [{"id": key, "n": number, "t": f"text é {number}"} for number, key in enumerate(IDS)]
    sign = "\t" if name.endswith("tsv") else ","
    lines = [sign.join(["id", "n", "t"]), *(sign.join(map(str, row.values())) for row in rows)]
    content = "\n".join(map(json.dumps, rows)) if "json" in name else "\r\n".join(lines)
    place = written(tmp_path, name, content.encode("utf-16") if "16" in name else content)
    if name == "m.parquet":
        pq.write_table(pa.Table.from_pylist(rows), place)
    assert metadata_for(place, IDS, {})[0].to_pylist() == [{"n": row["n"], "t": row["t"]} for row in rows]


def test_ids_of_digits_stay_texts(tmp_path):
    place = written(tmp_path, "m.csv", "id,price\n00012,5\n00012.0,6\n")
    assert metadata_for(place, ["00012"], {})[0].to_pylist() == [{"price": 5}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.xlsx", "x", "is no .parquet, .csv, .tsv, .jsonl or .ndjson file"),
        ("m.csv", "sku,price\nblue,5\n", "has no column that names images: it has sku, price; call the one"),
        ("m.csv", "id,price\nblue,5\nblue.jpg,6\n", "has two rows of the image 'blue': 1 and 2"),
        ("m.csv", "id,price\npink,5\ngreen,6\n", "names no image that is indexed: it has 'pink', 'green'; ids"),
        ("m.csv", "id,price,price\nblue,5,6\n", "has two columns 'price'"),
        ("m.csv", "id,price\nblue,5,6\n", "cannot be read: CSV parse error"),
        ("m.csv", b"id,price\nblue,\xff\n", "cannot be read"),
        ("m.csv", "", "cannot be read"),
        ("m.jsonl", '{"id": "blue", "n": 1}\n{"id": "a b/red", "n": "x"}', "cannot be read: JSON parse error"),
        ("m.jsonl", '{"id": "blue"', "cannot be read"),
        ("m.parquet", b"PAR1 not", "cannot be read"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_in_one_sentence(tmp_path, name, content, sentence):
    with pytest.raises(DataError) as told:
        metadata_for(written(tmp_path, name, content), IDS, FILES)
    assert sentence in str(told.value) and "\n" not in str(told.value)


def test_columns_that_no_filter_could_read_are_left_out_and_named(tmp_path):
    rows = [{"id": "blue", "size": {"w": 1}, "tags": ["a", "b"], "n": 1}]
    table, notes = metadata_for(written(tmp_path, "m.jsonl", "\n".join(map(json.dumps, rows))), ["blue"], {})
    assert table.to_pylist() == [{"tags": ["a", "b"], "n": 1}]
    assert notes[-1].endswith("columns left out, for no filter could read them: size")


def test_an_index_keeps_its_metadata_and_filters_by_it(tmp_path):
    lines = ["file,price", *(f"plain/{number:02d}.png,{number}" for number in range(0, 24, 2)), "else.png,1"]
    made = tiny_service.make(tmp_path, metadata=written(tmp_path, "m.csv", "\n".join(lines)))
    gallery = open_index(made.index)
    assert gallery.metadata is not None and len(gallery.metadata) == len(gallery.ids) == 24
    assert [gallery.ids[row] for row in gallery.columns.mask("price < 4").nonzero()[0]] == ["plain/00", "plain/02"]
    assert gallery.columns.mask("id starts with 'a b/' and price is null").sum() == 12
    told = [note.removeprefix(f"{tmp_path}/m.csv: ") for note in made.manifest.extra["notes"]]
    assert told == ["1 of 13 rows name no image that is indexed", "13 of 25 images have no row"]


def test_a_column_of_pixels_names_no_image(tmp_path):
    place = tmp_path / "m.parquet"
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": None}], "file_name": ["blue.jpg"], "n": [1]}), place)
    table, notes = metadata_for(str(place), ["blue"], FILES)
    assert table.to_pylist() == [{"n": 1}] and "left out" in notes[0] and notes[0].endswith("image")


def test_metadata_that_does_not_fit_is_refused_before_any_picture_is_encoded(tmp_path):
    with pytest.raises(DataError, match="names no image"):
        tiny_service.make(tmp_path, metadata=written(tmp_path, "m.csv", "id,price\nx,1\n"))
    assert not (tmp_path / "index").exists() and not list(tmp_path.glob("index*/parts"))
