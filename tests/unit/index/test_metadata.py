"""Facets and values of columns, and what a gallery without metadata answers."""

import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from cirray.core.errors import DataError
from cirray.index.metadata import Columns

TABLE = pa.table(
    {
        "category": ["shoes", "bags", "shoes", None],
        "price": [1.5, float("nan"), 3.0, 2.0],
        "seen": [dt.datetime(2025, 1, 2, 3), None, None, None],
        "sold": [True, False, True, True],
        "tags": [["a"], [], None, ["b"]],
        "number": list(range(4)),
    }
)
IDS = ("a", "b", "c", "d")


def test_facets_count_values_and_tell_ranges():
    found = {facet.column: facet for facet in Columns(IDS, TABLE).facets()}
    assert found["category"].counts == (("shoes", 2), ("bags", 1)) and found["category"].filled == 3
    assert (found["price"].least, found["price"].most, found["price"].filled) == (1.5, 3.0, 3)
    assert found["seen"].least == "2025-01-02T03:00:00" and found["sold"].counts == ((True, 3), (False, 1))
    assert "tags" not in found


def test_facets_under_a_filter_are_those_of_its_rows():
    columns = Columns(IDS, TABLE)
    found = {facet.column: facet for facet in columns.facets(columns.mask("sold and price > 1"))}
    assert found["category"].counts == (("shoes", 2),) and found["number"].most == 3
    none = {facet.column: facet for facet in columns.facets(np.zeros(4, bool))}
    assert none["price"].filled == 0 and none["price"].least is None and none["category"].counts == ()


def test_a_column_with_many_values_has_no_counts():
    found = Columns(
        list(map(str, range(200))), pa.table({"n": list(range(200)), "t": list(map(str, range(200)))})
    ).facets()
    assert [facet.counts for facet in found] == [(), ()] and found[0].most == 199 and found[1].filled == 200


def test_values_are_those_that_json_has():
    assert Columns(IDS, TABLE).rows([0, 3], ["seen", "tags", "sold"]) == [
        {"seen": "2025-01-02T03:00:00", "tags": ["a"], "sold": True}, {"seen": None, "tags": ["b"], "sold": True},
    ]  # fmt: skip


def test_a_gallery_without_metadata_has_its_ids_to_filter_by():
    columns = Columns(IDS, None)
    assert columns.mask("id in ['a', 'd']").tolist() == [True, False, False, True]
    assert columns.facets() == [] and columns.rows([0], []) == [{}]
    with pytest.raises(DataError, match="Unknown column 'price'. Known: id."):
        columns.mask("price < 5")
