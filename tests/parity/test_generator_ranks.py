"""The generator's losses on one and two gloo ranks: gradients, training, what is saved; with means that must fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "fixtures" / "generator_ranks.py"
CASES = ["answers", "captions", "bags", "pairs"]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generator")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {world: json.loads((folder / f"world-{world}.json").read_text()) for world in (1, 2)}


def largest(one):
    return max(abs(value) for values in one.values() for value in values)


def gap(one, other):
    """Largest difference, relative to the largest value."""
    assert set(one) == set(other)
    gaps = [abs(a - b) for name in one for a, b in zip(one[name], other[name], strict=True)]
    return max(gaps) / largest(one)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_have_the_loss_and_the_gradient_of_the_global_batch(worlds, case):
    one, two = worlds[1][case], worlds[2][case]
    assert largest(one["gradients"]) > 1e-3
    assert gap(one["gradients"], two["gradients"]) < 1e-5
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_mean_of_the_ranks_own_means_is_seen(worlds, case):
    assert gap(worlds[1][case]["gradients"], worlds[2][f"alone_{case}"]["gradients"]) > 1e-3


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("case", ["answers", "captions", "pairs"])
def test_deepspeed_on_two_ranks_trains_and_saves_what_torch_does_in_one_process(worlds, case, stage):
    one, two = worlds[1][case], worlds[2][f"zero{stage}_{case}"]
    for mine, theirs in zip(one["history"], two["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    assert gap(one["saved"], two["saved"]) < 1e-3


def test_adapters_are_saved_and_the_frozen_language_model_is_not(worlds):
    saved = worlds[2]["zero2_answers"]["saved"]
    language = [name for name in saved if name.startswith("lm.")]
    assert language and all("lora_" in name for name in language)
    assert not [name for name in worlds[2]["captions"]["saved"] if name.startswith("lm.")]
