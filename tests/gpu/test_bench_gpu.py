"""The GPU script runs, and needs none of the libraries that a bare machine lacks. (Speeds are not looked at.)"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cirray.generators.writer import TextWriter

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("ray", "deepspeed", "faiss", "open_clip")
SCRIPT = """
import runpy, socket, sys
socket.socket.connect = None  # nothing may be fetched
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = ["bench_gpu.py", *{arguments!r}]
runpy.run_path({path!r}, run_name="__main__")
"""


def run(*arguments, blocked=BLOCKED):
    path = str(ROOT / "jobs" / "benchmarks" / "bench_gpu.py")
    code = SCRIPT.format(blocked=blocked, arguments=arguments, path=path)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=280)


def test_everything_runs_small_on_a_cpu_without_network_ray_deepspeed_faiss_and_open_clip(tmp_path):
    done = run("--device", "cpu", "--small", f"out={tmp_path / 'figures.jsonl'}")
    assert done.returncode == 0, done.stderr[-2000:]
    for part in ("cached tokens", "pixels", "MTG step", "5 beams, one pair at a time", "greedy, 8 rows"):
        assert part in done.stdout
    # With beams as without: in fp32 the loop and the batch write the same tokens.
    assert done.stdout.count("100% of tokens as in a batch") == 2
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    named = [row["what"].split(",")[0] for row in rows]
    assert named == ["PTHA step", "PTHA step", "MTG step", *["5 beams"] * 3, *["greedy"] * 3]
    assert {"samples/s", "TFLOP/s", "peak GiB", "planned GiB", "samples/s with rows read and moved"} <= set(rows[0])
    assert {"pairs/s", "tokens/s", "of the floor", "peak GiB", "against the loop"} <= set(rows[4])
    assert all(row["samples/s"] > 0 for row in rows[:3]) and all(row["pairs/s"] > 0 for row in rows[3:])


def here(monkeypatch, *arguments):
    """The script in this process, which has loaded its libraries; its exit status."""
    path = str(ROOT / "jobs" / "benchmarks" / "bench_gpu.py")
    monkeypatch.setattr(sys, "argv", [path, *arguments])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(path, run_name="__main__")
    return done.value.code


def test_a_run_that_breaks_off_keeps_what_it_has_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TextWriter, "generate", lambda *given: sys.exit(9))
    assert here(monkeypatch, "--device", "cpu", "--small", "parts=[cached,generate]", f"out={tmp_path / 'f'}") == 9
    kept = [json.loads(line)["what"] for line in (tmp_path / "f").read_text().splitlines()]
    assert kept == ["PTHA step, cached tokens, batch 8", "5 beams, one pair at a time"]
    assert "PTHA step, cached tokens" in capsys.readouterr().out


def test_a_part_or_a_device_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    assert here(monkeypatch, "--device", "cpu", "parts=[generat]") == 2
    assert "Did you mean 'generate'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert here(monkeypatch) == 2
        assert "device 'cuda' is not there" in capsys.readouterr().err


def test_the_check_sees_a_library_that_is_needed():
    done = run("--device", "cpu", "--small", blocked=("transformers",))
    assert done.returncode != 0 and "transformers" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_everything_runs_small_on_an_accelerator():
    done = run("--device", "cuda", "--small")
    assert done.returncode == 0, done.stderr[-2000:]
