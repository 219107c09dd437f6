"""DeepSpeed against the torch engine, step by step: ZeRO 0-3, one rank and two, from scratch and from checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = Path(__file__).resolve().parents[1] / "fixtures" / "deepspeed_ranks.py"
EXACT, CLOSE = 1e-7, 5e-6


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ds")
    command, environment = [sys.executable, str(RANKS), str(folder)], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return {world: json.loads((folder / f"world-{world}.json").read_text()) for world in (1, 2)} | {"folder": folder}


def column(case: dict, name: str) -> list[float]:
    return [row[name] for row in case["history"]]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_of_any_zero_stage_take_the_torch_engines_steps(results, stage):
    found, wanted = results[2][f"zero{stage}"], results[2]["torch"]
    for name in ("loss", "grad_norm", "lr", "infonce", "rtc", "two_hop"):
        assert column(found, name) == pytest.approx(column(wanted, name), rel=1e-4, abs=1e-6), name
    assert found["gap"] < (CLOSE if stage == 3 else EXACT)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_batch_in_pieces_takes_the_steps_of_a_whole_one_under_any_zero_stage(results, stage):
    found, wanted = results[2][f"pieces{stage}"], results[2]["torch"]
    for name in ("loss", "grad_norm", "infonce", "rtc", "two_hop"):
        assert column(found, name) == pytest.approx(column(wanted, name), rel=1e-4, abs=1e-6), name
    assert found["gap"] < (CLOSE if stage >= 2 else EXACT)  # sums over pieces after those over ranks


@pytest.mark.parametrize("stage", [2, 3])
def test_one_rank_takes_the_torch_engines_steps(results, stage):
    found, wanted = results[1][f"zero{stage}"], results[1]["torch"]
    assert column(found, "loss") == pytest.approx(column(wanted, "loss"), rel=1e-5)
    assert found["gap"] < (CLOSE if stage == 3 else EXACT)


def test_two_ranks_of_half_a_batch_equal_one_rank_of_the_whole(results):
    for name in ("loss", "grad_norm"):
        assert column(results[2]["zero2"], name) == pytest.approx(column(results[1]["zero2"], name), rel=1e-3)


def test_a_learning_rate_one_percent_off_is_seen(results):
    assert results[1]["other-lr"]["gap"] > 10 * CLOSE


def test_without_clipping_the_norm_is_still_reported(results):
    assert results[1]["unclipped"]["gap"] < EXACT
    assert min(column(results[1]["unclipped"], "grad_norm")) > 0


@pytest.mark.parametrize("stage", [1, 3])
def test_a_cycled_beta1_and_one_decaying_group_take_the_torch_engines_steps(results, stage):
    assert results[1][f"cycled{stage}"]["gap"] < (CLOSE if stage == 3 else EXACT)


def test_a_beta1_that_stays_is_seen(results):
    assert results[1]["steady"]["gap"] > 10 * CLOSE


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_is_autocast_over_fp32_weights_as_in_the_torch_engine(results, stage):
    assert results[2][f"bf16-zero{stage}"]["gap"] < CLOSE
    assert column(results[2][f"bf16-zero{stage}"], "loss") != column(results[2][f"zero{stage}"], "loss")


@pytest.mark.parametrize("stage", [1, 3])
def test_bf16_weights_have_fp32_copies_as_in_the_torch_engine_also_where_they_are_frozen(results, stage):
    """Later steps are not compared: a rounding changes which of a picture's vectors is nearest, and so the gradient."""
    found = results[2][f"halved{stage}"]
    for name in ("loss", "grad_norm"):
        assert column(found, name)[0] == pytest.approx(found["wanted"][0][name], rel=1e-3)
    assert column(found, "loss") == pytest.approx([row["loss"] for row in found["wanted"]], rel=5e-3)
    assert found["resumed"] < EXACT and found["frozen"] == 0 and found["dtypes"] == ["torch.float32"]
    assert found["beyond_bf16"] > 1e-4


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_resumed_run_ends_where_the_unbroken_one_does(results, stage):
    assert results[2][f"resume{stage}"]["gap"] < (CLOSE if stage == 3 else EXACT)


@pytest.mark.parametrize("case", ["resize0", "resize1", "resize2", "resize3", "stage1to2"])
def test_one_rank_goes_on_from_two_ranks_with_optimiser_state_and_all(results, case):
    assert results[1][case]["gap"] < (CLOSE if case == "resize3" else EXACT)


def test_what_cannot_be_resumed_is_refused_in_words(results):
    assert "ArtifactError" in results[1]["refused"]["stage"] and "zero_stage=2" in results[1]["refused"]["stage"]
    assert "no checkpoint of the DeepSpeed engine" in results[1]["refused"]["torch"]


def test_partitioned_weights_are_exported_whole(results):
    assert results[1]["reloaded"] == 0.0
    assert not list(results["folder"].rglob("zero_to_*.py"))


def test_the_engine_loads_no_compiler_and_tries_none_on_operators(results):
    assert not results[1]["compiler"] and results[1]["probed"] == ["deepspeed_shm_comm"]
