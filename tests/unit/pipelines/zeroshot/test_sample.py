"""Samples of triplets artifacts: nested by count, wrong texts of other rows, the same however the rows are stored."""

import pyarrow as pa
import pytest
from made_artifacts import from_triplets, stage_of

from cirray.core.config import validate
from cirray.core.errors import DataError
from cirray.pipelines.zeroshot import sample as module
from cirray.pipelines.zeroshot.config import SampleRun
from cirray.pipelines.zeroshot.sample import run_sample
from cirray.triplets.schema import REJECTED_SCHEMA
from cirray.triplets.store import TripletStore, regrouped, write_part
from cirray.types import Triplet, part_name

ROWS = [
    Triplet(f"t{row:03d}", f"r{row}", f"g{row}", f"make it number {row}", f"back to {row}", "val" if row % 5 == 0 else
            "train") for row in range(120)
]  # fmt: skip
TRAIN = [row for row in ROWS if row.split == "train"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    for name, size in (("triplets", 120), ("parted", 17)):
        stage, table = stage_of(str(root / name), "triplets", {}), from_triplets(ROWS)
        for number in range(-(-len(table) // size)):
            write_part(
                stage.work_uri, part_name(number), table.slice(number * size, size), REJECTED_SCHEMA.empty_table()
            )
        stage.publish({"triplets": len(table)})
    return root


def sample(root, name, source="triplets", **fields):
    run = validate(SampleRun, {"triplets": str(root / source), "out": str(root / name), **fields})
    return run_sample(run), TripletStore.open(root / name).read()


def test_a_sample_is_part_of_a_larger_one_of_its_seed(root):
    small, large = sample(root, "s20", count=20)[1], sample(root, "s50", count=50)[1]
    assert {row.triplet_id for row in small} < {row.triplet_id for row in large} and len(large) == 50
    assert all(row in TRAIN for row in large)
    assert {row.triplet_id for row in sample(root, "seed", count=20, seed=1)[1]} != {row.triplet_id for row in small}
    with pytest.raises(DataError, match="has 96 training rows; count 97 asks for more"):
        sample(root, "many", count=97)


def test_shuffled_rows_hold_another_rows_text_and_the_others_their_own(root):
    manifest, found = sample(root, "shuffled", shuffled=0.3)
    texts = {row.triplet_id: row.modification for row in TRAIN}
    wrong = [row for row in found if row.modification != texts[row.triplet_id]]
    assert 0.15 < manifest.counts["shuffled"] / 96 < 0.45 and manifest.counts["shuffled"] == len(wrong)
    assert sorted(row.modification for row in found) == sorted(texts.values())
    assert all(row.reverse_modification is None for row in found)
    assert {row.modification for row in sample(root, "template", template="change it")[1]} == {"change it"}


def test_a_sample_made_in_pieces_of_an_artifact_of_many_parts_is_the_same(root, monkeypatch):
    whole = sample(root, "whole", count=60, shuffled=0.4)[1]
    monkeypatch.setattr(module, "regrouped", lambda tables: regrouped(tables, 25))
    monkeypatch.setattr(TripletStore.pieces, "__defaults__", ((), 11))
    parted = sample(root, "pieces", source="parted", count=60, shuffled=0.4)[1]
    assert parted == whole and len(TripletStore.open(root / "pieces").splits()) == 1
    assert len(list((root / "pieces" / "data").iterdir())) == 3


def test_tables_are_regrouped_without_loss_and_in_order():
    spans = ((0, 3), (3, 0), (3, 9), (12, 1))
    tables = [pa.table({"row": pa.array(range(start, start + size), pa.int64())}) for start, size in spans]
    found = [*regrouped(tables, 5)]
    assert [len(table) for table in found] == [5, 5, 3]
    assert pa.concat_tables(found).column("row").to_pylist() == [*range(13)] and not [*regrouped(tables[1:2], 5)]
