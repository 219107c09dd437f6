"""The GPU script runs, and needs none of the libraries that a bare machine lacks. (Speeds are not looked at.)"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = ("ray", "deepspeed", "faiss", "open_clip")
SCRIPT = """
import runpy, sys
for name in {blocked!r}:
    sys.modules[name] = None
sys.argv = ["bench_gpu.py", *{arguments!r}]
runpy.run_path({path!r}, run_name="__main__")
"""


def run(*arguments, blocked=BLOCKED):
    path = str(ROOT / "jobs" / "benchmarks" / "bench_gpu.py")
    code = SCRIPT.format(blocked=blocked, arguments=arguments, path=path)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=280)


def test_everything_runs_small_on_a_cpu_without_ray_deepspeed_faiss_and_open_clip():
    done = run("--device", "cpu", "--small")
    assert done.returncode == 0, done.stderr[-2000:]
    for part in ("cached tokens", "pixels", "MTG step", "5 beams, one pair at a time", "greedy, 8 rows"):
        assert part in done.stdout
    assert "100% of tokens as in a batch" in done.stdout


def test_the_check_sees_a_library_that_is_needed():
    done = run("--device", "cpu", "--small", blocked=("transformers",))
    assert done.returncode != 0 and "transformers" in done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_everything_runs_small_on_an_accelerator():
    done = run("--device", "cuda", "--small")
    assert done.returncode == 0, done.stderr[-2000:]
