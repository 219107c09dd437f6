"""The triplet store: schema, parts, merging, reverse texts, and refusals."""

import pyarrow as pa
import pytest
from made_artifacts import from_triplets, stage_of

from cirray.core.errors import ArtifactError, DataError
from cirray.triplets.schema import (
    REJECTED_SCHEMA,
    TRIPLET_SCHEMA,
    rejected_table,
    to_triplets,
    triplet_id,
    triplet_ids,
    triplet_table,
)
from cirray.triplets.store import TripletStore, attach_reverse, finished_keys, row_counts, write_part
from cirray.types import Triplet

NOTHING = rejected_table([])


def row(number, **fields):
    return {
        "triplet_id": f"t{number}", "reference_id": f"r{number}", "target_id": f"x{number}",
        "modification": f"make it {number}", **fields,
    }  # fmt: skip


def refusal(number, reason="empty"):
    key = {"triplet_id": f"t{number}", "pair_id": f"p{number}", "reference_id": "a", "target_id": "b"}
    return {**key, "source": "mtst", "generator": "g", "reason": reason}


def write(uri, rows, rejected=(), parts=1):
    stage = stage_of(uri, "triplets", {"rows": len(rows)})
    for number in range(parts):
        refused = rejected_table(rejected) if number == 0 else NOTHING
        write_part(stage.work_uri, f"part-{number:05d}", triplet_table(rows[number::parts]), refused)
    stage.publish({"triplets": len(rows)})
    return str(uri)


def test_triplets_survive_the_way_to_disk_and_back_sorted_by_reference(tmp_path):
    items = [
        Triplet("t2", "a", "b", "größer machen", "undo", "val", "human", "fam", 0.5, "resize"),
        Triplet("t1", "b", "a", "make it red"),
    ]
    stage = stage_of(tmp_path / "t", "triplets", {})
    write_part(stage.work_uri, "part-00000", from_triplets(items), NOTHING)
    stage.publish({"triplets": 2})
    assert TripletStore.open(tmp_path / "t").read() == items


def test_the_order_of_rows_does_not_depend_on_the_digests_in_their_ids(tmp_path):
    pairs = [(f"p{number}", reference) for number in range(6) for reference in ("a", "b")]
    orders = []
    for recipe in ("one", "other"):
        rows = [
            row(0, triplet_id=triplet_id(pair, recipe, reference), pair_id=pair, reference_id=reference, target_id="c")
            for pair, reference in reversed(pairs)
        ]
        table = TripletStore.open(write(tmp_path / recipe, rows, parts=2)).table()
        orders.append(
            list(zip(table.column("pair_id").to_pylist(), table.column("reference_id").to_pylist(), strict=True))
        )
    assert orders == [pairs, pairs]


def test_rows_are_filtered_by_split_and_source(tmp_path):
    rows = [row(1, split="val"), row(2, source="mtst"), row(3)]
    store = TripletStore.open(write(tmp_path / "t", rows, parts=2))
    assert [t.triplet_id for t in store.read(split="train")] == ["t2", "t3"]
    assert [t.triplet_id for t in store.read(source="mtst")] == ["t2"]
    assert [t.triplet_id for t in store.read()] == ["t1", "t2", "t3"]


def test_a_missing_or_unknown_column_an_empty_text_and_a_wrong_type_are_refused():
    bare = row(1)
    del bare["target_id"]
    with pytest.raises(DataError, match="'t1' lacks the column 'target_id'"):
        triplet_table([bare])
    with pytest.raises(DataError, match="unknown column 'colour'"):
        triplet_table([row(1, colour="red")])
    with pytest.raises(DataError, match="'t1' has an empty modification"):
        triplet_table([row(1, modification="  ")])
    with pytest.raises(DataError, match="do not fit the schema"):
        triplet_table([row(1, weight="heavy")])


def test_named_scores_are_kept():
    table = triplet_table([row(1, scores={"pair": 0.5, "round_trip": 1.0})])
    assert dict(table.column("scores").to_pylist()[0]) == {"pair": 0.5, "round_trip": 1.0}


def test_an_id_that_stands_twice_is_refused(tmp_path):
    uri = write(tmp_path / "t", [row(1), row(2), row(1)], parts=2)
    with pytest.raises(DataError, match="'t1' appears 2 times"):
        TripletStore.open(uri).read()


def finished_ids(uri):
    return {name: keys.to_pylist() for name, keys in finished_keys(uri)}


def test_a_part_counts_as_finished_only_with_its_data(tmp_path):
    write_part(str(tmp_path), "part-00000", triplet_table([row(1)]), rejected_table([refusal(2)]))
    write_part(str(tmp_path), "part-00001", triplet_table([]), rejected_table([refusal(3)]))
    assert finished_ids(str(tmp_path)) == {"part-00000": ["t1", "t2"], "part-00001": ["t3"]}
    assert row_counts(str(tmp_path)) == [1, 0]
    (tmp_path / "data" / "part-00000.parquet").unlink()
    assert finished_ids(str(tmp_path)) == {"part-00001": ["t3"]}


def test_a_damaged_part_is_named(tmp_path):
    uri = write(tmp_path / "t", [row(1), row(2)], parts=2)
    path = tmp_path / "t" / "data" / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="part-00001.parquet.*damaged"):
        TripletStore.open(uri).read()
    with pytest.raises(ArtifactError, match="part-00001.parquet.*damaged"):
        finished_ids(uri)


def test_foreign_columns_are_refused(tmp_path):
    import pyarrow.parquet as pq

    uri = write(tmp_path / "t", [row(1)])
    pq.write_table(pa.table({"triplet_id": ["t9"]}), tmp_path / "t" / "data" / "part-00007.parquet")
    with pytest.raises(DataError, match="part-00007.parquet.*nothing where the column 'pair_id'"):
        TripletStore.open(uri).read()


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        write_part(str(tmp_path / name), "part-00000", triplet_table([row(1), row(2)]), NOTHING)
    one, two = ((tmp_path / name / "data" / "part-00000.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_reverse_texts_are_attached_by_image_pair_in_either_direction():
    human = [
        Triplet("1", "a", "b", "f1"), Triplet("2", "c", "d", "f2"), Triplet("3", "e", "f", "f3", "own"),
        Triplet("4", "g", "h", "f4"),
    ]  # fmt: skip
    generated = [
        Triplet("x", "a", "b", "forward", "reverse of ab", source="mtst"),
        Triplet("y", "d", "c", "text of dc", source="mtst"),
        Triplet("z", "e", "f", "forward", "reverse of ef", source="mtst"),
    ]
    found = [t.reverse_modification for t in attach_reverse(human, generated)]
    assert found == ["reverse of ab", "text of dc", "own", None]
    assert [t.modification for t in attach_reverse(human, generated)] == ["f1", "f2", "f3", "f4"]


def test_triplet_ids_depend_on_pair_recipe_and_direction():
    base = triplet_id("p", "r", "forward")
    many = triplet_ids(pa.array(["p", "ü"]), "r", ("forward", "reverse")).to_pylist()
    assert many == [triplet_id(pair, "r", way) for pair in ("p", "ü") for way in ("forward", "reverse")]
    assert base == triplet_id("p", "r", "forward")
    assert (
        len({base, triplet_id("q", "r", "forward"), triplet_id("p", "s", "forward"), triplet_id("p", "r", "reverse")})
        == 4
    )


def test_the_schema_is_what_other_programs_rely_on():
    assert TRIPLET_SCHEMA.names[:6] == [
        "triplet_id", "pair_id", "reference_id", "target_id", "modification", "reverse_modification",
    ]  # fmt: skip
    assert TRIPLET_SCHEMA.field("scores").type == pa.map_(pa.string(), pa.float64())
    assert "reason" in REJECTED_SCHEMA.names
    assert to_triplets(triplet_table([])) == []


def test_hard_negatives_and_further_right_answers_travel_with_a_row(tmp_path):
    rows = [row(0, negative_ids=["n1", "n2"], positive_ids=("p",)), row(1)]
    found = TripletStore.open(write(tmp_path / "triplets", rows)).read()
    assert [(item.negative_ids, item.positive_ids) for item in found] == [(("n1", "n2"), ("p",)), ((), ())]
    assert found[0].images == ("r0", "x0", "n1", "n2")
    for wrong in ({"negative_ids": ["x0"]}, {"negative_ids": ["p"], "positive_ids": ["p"]}):
        with pytest.raises(DataError, match="'t0' has '.*' as a right answer and as a hard negative"):
            triplet_table([row(0, **wrong)])
    with pytest.raises(DataError, match="do not fit"):
        triplet_table([row(0, negative_ids=[3])])
