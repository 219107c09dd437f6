"""The zero-shot losses on one, two and four gloo ranks: equal values, equal gradients; with gathers that must fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(ROOT / "tests" / "fixtures" / "zeroshot_ranks.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=280)
    return {world: json.loads((folder / f"world-{world}.json").read_text()) for world in (1, 2, 4)}


def losses(result):
    return [row["loss"] for row in result["history"]]


def gradients(result):
    return np.concatenate([values for _, values in sorted(result["gradients"].items())])


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("case", ["mapping", "text_only", "distil", "composing", "retention_distill", "doubling"])
def test_loss_and_gradient_of_several_ranks_are_those_of_one_process(found, case, world):
    one, many = found[1][case], found[world][case]
    assert losses(many) == pytest.approx(losses(one), rel=1e-4)
    assert np.allclose(gradients(many), gradients(one), rtol=1e-3, atol=1e-5)
    assert np.abs(gradients(one)).max() > 1e-3


@pytest.mark.parametrize("control", ["alone"])
def test_a_gather_that_sees_one_rank_only_is_told_apart(found, control):
    assert losses(found[2][control]) != pytest.approx(losses(found[1]["paper"]), rel=1e-3)
