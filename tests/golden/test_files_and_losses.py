"""Columns of the files others may read, and the first losses of each objective: changes of format or method show here.

To accept one: `python tests/golden/test_files_and_losses.py` writes the files anew.
"""

import importlib.util
import json
from pathlib import Path

import pytest

from cirray.evaluation.report import RANKING_SCHEMA
from cirray.triplets.pairs import PAIR_SCHEMA
from cirray.triplets.schema import REJECTED_SCHEMA, TRIPLET_SCHEMA

SCHEMAS, LOSSES = Path(__file__).with_name("schemas.json"), Path(__file__).with_name("losses.json")
TINY = Path(__file__).parents[1] / "fixtures" / "gather_ranks.py"


def schemas():
    """Column -> type of every Parquet file."""
    named = {
        "triplets": TRIPLET_SCHEMA, "rejected triplets": REJECTED_SCHEMA, "pairs": PAIR_SCHEMA,
        "rankings": RANKING_SCHEMA,
    }  # fmt: skip
    return {name: {column.name: str(column.type) for column in schema} for name, schema in named.items()}


def losses():
    """History of three steps of a tiny retriever, per objective."""
    spec = importlib.util.spec_from_file_location("gather_ranks", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = ("ptha", "paper", "fp32")
    return {name: [row["loss"] for row in module.run(0, 1, module.CASES[name])["history"]] for name in names}


def test_columns_are_the_recorded_ones():
    assert schemas() == json.loads(SCHEMAS.read_text())


def test_losses_are_the_recorded_ones():
    recorded = json.loads(LOSSES.read_text())
    found = losses()
    assert found.keys() == recorded.keys()
    for name, curve in recorded.items():
        assert found[name] == pytest.approx(curve, rel=2e-3)


if __name__ == "__main__":
    SCHEMAS.write_text(json.dumps(schemas(), indent=1) + "\n")
    LOSSES.write_text(json.dumps(losses(), indent=1) + "\n")
