"""One, two and four gloo ranks against each other: loss, gradients, training; with gathers that must fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fixtures" / "gather_ranks.py"


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gather")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {world: json.loads((folder / f"world-{world}.json").read_text()) for world in (1, 2, 4)}


def largest_gap(one, other):
    gaps = [abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True)]
    return max(gaps)


def largest(one):
    return max(abs(value) for values in one.values() for value in values)


@pytest.mark.parametrize("case", ["ptha", "paper", "chunked", "sprc", "hn_nce", "vdg", "vdg_paired", "hard", "pieces"])
@pytest.mark.parametrize("world", [2, 4])
def test_gathered_ranks_equal_one_process(worlds, world, case):
    one, several = worlds[1]["ptha" if case == "pieces" else case], worlds[world][case]
    assert largest(one["gradients"]) > 1e-2
    # Rounding: the sum of two directions at beta 0.5 gives the temperature a gradient of about 100.
    assert largest_gap(one["gradients"], several["gradients"]) < 2e-6 * max(largest(one["gradients"]), 10)
    for mine, theirs in zip(one["history"], several["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("control", ["blind", "alone"])
def test_a_gather_without_gradient_or_none_at_all_is_seen(worlds, control):
    assert largest_gap(worlds[1]["paper"]["gradients"], worlds[2][control]["gradients"]) > 1e-3


def test_the_loss_alone_would_not_have_seen_the_missing_gradient(worlds):
    first, blind = worlds[1]["paper"]["history"][0], worlds[2]["blind"]["history"][0]
    assert first["loss"] == pytest.approx(blind["loss"], rel=1e-5)
    assert first["loss"] != pytest.approx(worlds[2]["alone"]["history"][0]["loss"], rel=1e-2)


def distance(one, other):
    """Norm of the difference of two sets of gradients, relative to the first's norm."""
    pairs = [(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)]
    return (sum((a - b) ** 2 for a, b in pairs) / sum(a**2 for a, _ in pairs)) ** 0.5


@pytest.mark.parametrize("precision", ["bf16", "bf16_weights"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_bf16_gradients_point_where_those_of_fp32_do_on_any_number_of_ranks(worlds, world, precision):
    exact, rounded = worlds[1]["fp32"], worlds[world][precision]
    assert 0 < distance(exact["gradients"], rounded["gradients"]) < 0.1
    assert exact["history"][0]["grad_norm"] == pytest.approx(rounded["history"][0]["grad_norm"], rel=0.05)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_rank_stops_at_the_same_step_and_rank_0_alone_holds_the_best_weights(worlds, world):
    found = worlds[world]["stopped early"]
    assert [row[:2] for row in found] == [[4, 2]] * world
    assert found[0][2] > 10 and all(row[2] == 0 for row in found[1:])
