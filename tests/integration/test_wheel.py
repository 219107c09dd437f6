"""The wheel, installed outside the checkout: what a stranger has after `pip install`.

The dependencies are not installed again (8 GB): the fresh environment sees those of the one that runs the tests through
a `.pth` file. The editable cirray there is a `.pth` file itself, which is not read from a folder added in this way.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = SimpleNamespace(**runpy.run_path(str(ROOT / "tests/fixtures/tiny_service.py")))
PARTS = ("cirray", "jobs", "serve_configs", "docs", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
UNKEPT = shutil.ignore_patterns("__pycache__", "*.egg-info")


def run(*command, cwd, **variables):
    """Status, output and errors of a command, without the variables that point to the checkout."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CIRRAY_ROOT")}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, env={**inherited, **variables}
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the source archive, built from a copy of the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name, **({"ignore": UNKEPT} if (ROOT / name).is_dir() else {}))
    for kind in ("sdist", "wheel"):
        script = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
        done = run(sys.executable, "-c", script, cwd=source)
        assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with the wheel, and an empty folder to work in."""
    home = tmp_path_factory.mktemp("home")
    assert run(sys.executable, "-m", "venv", "--without-pip", home / "venv", cwd=home).returncode == 0
    python, wheel = home / "venv/bin/python", next(built.glob("*.whl"))
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    done = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home).stdout.strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (home / "empty").mkdir()
    return home


@pytest.fixture(scope="module")
def cirray(installed):
    """`cirray WORD ...` in the empty folder: what it prints; the status is as given."""

    def call(*words, status=0):
        done = run(installed / "venv/bin/cirray", *words, cwd=installed / "empty", HOME=str(installed))
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    return call


def test_the_package_that_runs_is_the_wheel_s(installed, cirray):
    where = run(installed / "venv/bin/python", "-c", "import cirray; print(cirray.__file__)", cwd=installed / "empty")
    assert where.stdout.startswith(str(installed / "venv"))
    assert cirray("--version").startswith("cirray ") and "Search" in cirray("--help")


def test_recipes_overlays_and_serve_configs_are_found_by_name(cirray):
    told = cirray("config", "finetune", "cirr/finetune-ptha-paper", "hardware/train-8gpu", "--given")
    assert "num_workers: 8" in told and "objective: ptha" in told
    assert "cirr/finetune-ptha-paper" in cirray("finetune", "--help", "recipes")
    assert "serve_configs/production.yaml" in cirray("serve", "production", "--print-config")
    assert "verb: finetune" in cirray("quickstart", "--print-config")


def test_it_indexes_searches_and_checks_a_folder_without_any_training(installed, cirray):
    images, model = TINY.write_pictures(installed / "pictures"), installed / "shapes-clip"
    shutil.copytree(ROOT / "cirray/assets/shapes-clip", model)
    said = cirray("index", "--model", str(model), "--images", str(images), "--out", "index", status=3)
    assert "24 images" in said and "rejected plain/broken" in said
    opened = next((installed / "cirray/quickstart/models").glob("shapes-clip-*"))
    answer = cirray("search", "id=plain/00", "text=a red circle", f"checkpoint={opened}", "index=index", "k=3")
    assert len(answer.splitlines()) == 5 and (installed / "empty/cirray-search.html").stat().st_size > 1000
    assert json.loads(cirray("doctor", str(images), "--json", status=1))


def test_the_wheel_holds_types_recipes_assets_pages_and_no_test(built):
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    for name in ("cirray/py.typed", "cirray/serve_configs/fastpath.env", "cirray/serving/static/index.html"):
        assert name in names
    recipes = {str(path.relative_to(ROOT / "jobs/configs")) for path in (ROOT / "jobs/configs").glob("*/*.yaml")}
    assert {f"cirray/recipes/{name}" for name in recipes} <= names
    data = [path for path in (ROOT / "cirray").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {str(path.relative_to(ROOT)) for path in data} <= names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"cirray"}


def test_the_metadata_names_the_core_the_extras_and_where_the_method_is_written(built):
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    text = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    core = [line for line in text.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in core if "faiss" in line or "deepspeed" in line]
    for line in ("Provides-Extra: gpu", "Provides-Extra: embedders", "Typing :: Typed", "Project-URL: Paper"):
        assert line in text


def test_the_source_archive_builds_the_same_package(built):
    names = {name.partition("/")[2] for name in tarfile.open(next(built.glob("*.tar.gz"))).getnames()}
    assert {"setup.py", "jobs/configs/cirr/finetune-sprc.yaml", "serve_configs/production.yaml"} <= names
    assert not [name for name in names if "__pycache__" in name]
