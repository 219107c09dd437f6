"""Importing the package or asking for help loads neither torch nor ray, and is quick."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "ray", "transformers", "faiss", "deepspeed", "open_clip", "matplotlib")
LIGHT = ["cirray", "cirray.types", "cirray.pipelines.training.config", "cirray.cli.main"]


def loaded_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_heavy_library(module):
    assert loaded_after(f"import {module}") & set(HEAVY) == set()


@pytest.mark.parametrize("words", [["--help"], ["finetune", "--help"], ["index", "--help", "recipes"]])
def test_help_loads_no_heavy_library(words):
    code = f"from cirray.cli.main import main\nmain({words!r})"
    assert loaded_after(code) & {*HEAVY, "pyarrow", "PIL", "httpx", "rich"} == set()


def test_ray_train_s_controller_loads_no_torch_for_this_package():
    """It is a process of its own, which workers wait for: what it reads of a run is its failures' module alone."""
    assert loaded_after("import cirray.pipelines.training.failures") & set(HEAVY) == {"ray"}


@pytest.mark.parametrize("room", ["pipelines", "serving"])
def test_a_process_that_runs_stages_or_serves_looks_for_garbage_seldom_before_it_loads_heavy_libraries(room):
    code = f"import cirray.{room}, gc, sys; print(gc.get_threshold()[0], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["20000", "False"]


def test_the_check_sees_a_heavy_library():
    assert "matplotlib" in loaded_after("import matplotlib")


def test_only_rim_modules_load_ray():
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted((ROOT / "cirray").rglob("*.py"))
        if path.parts[len(ROOT.parts) + 1] not in ("pipelines", "serving") and path.name != "__init__.py"
    ]
    code = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules)
    assert loaded_after(code) & {"ray", "deepspeed", "fastapi"} == set()
