"""A negative bank in shards of rows against one that every worker holds whole, on one, two and four gloo ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fixtures" / "bank_ranks.py"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bank")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return {world: json.loads((folder / f"world-{world}.json").read_text()) for world in (1, 2, 4)}


def largest_gap(one, other):
    """Relative for what is above 1: the temperature's gradient is some tens."""
    return max(abs(a - b) / max(1.0, abs(a)) for name in one for a, b in zip(one[name], other[name], strict=True))


@pytest.mark.parametrize("case", ["replicated", "sharded", "sharded in small blocks"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_sharded_loss_and_gradient_equal_those_of_a_whole_bank(worlds, world, case):
    one, several = worlds[1]["replicated"], worlds[world][case]
    assert max(abs(value) for values in one["gradients"].values() for value in values) > 1e-2
    assert one["gradients"].keys() == several["gradients"].keys()
    assert largest_gap(one["gradients"], several["gradients"]) < 2e-5
    for mine, theirs in zip(one["history"], several["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("world", [2, 4])
def test_fewer_negatives_are_seen_in_the_loss(worlds, world):
    few, all_of_them = worlds[world]["own negatives only"], worlds[1]["replicated"]
    assert few["history"][0]["loss"] < all_of_them["history"][0]["loss"] - 0.1


def test_the_temperature_and_the_query_side_train_and_nothing_of_the_target_side(worlds):
    names = set(worlds[1]["replicated"]["gradients"])
    assert "query.raw_temperature" in names and all(name.startswith("query.") for name in names)
    assert any(value for value in worlds[1]["replicated"]["gradients"]["query.raw_temperature"])
