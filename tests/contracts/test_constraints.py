"""`constraints.txt` says what was tested: every direct dependency, inside the bounds of `pyproject.toml`; no host."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
LINES = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
PINNED = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LINES if "==" in line}


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    found = [Requirement(text) for text in (*project["dependencies"], *(item for extra in extras for item in extra))]
    return [item for item in found if item.name != "cirray"]


def test_a_line_is_a_name_and_a_version():
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


def test_every_direct_dependency_is_pinned_inside_its_bounds():
    wanted = [item for item in requirements() if item.marker is None or item.marker.evaluate()]
    odd = [str(item) for item in wanted if PINNED.get(canonicalize_name(item.name), "none") not in item.specifier]
    assert len(wanted) > 20 and odd == []


def test_the_core_names_no_faiss_and_no_group_of_extras_brings_it_twice():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: " ".join(items) for name, items in project["optional-dependencies"].items()}
    assert not [item for item in project["dependencies"] if "faiss" in item]
    assert {name for name, items in extras.items() if "faiss" in items or re.search(r"\b[cg]pu\b", items)} == {
        "cpu",
        "gpu",
    }


def test_make_takes_one_faiss_and_removes_the_other_first():
    for word, target in ((), "demo"), (("FAISS=gpu",), "test"):
        lines = made(*word, target)
        gone = next(at for at, line in enumerate(lines) if "pip uninstall" in line and "faiss-cpu faiss-gpu" in line)
        assert f'".[{"gpu" if word else "cpu"},' in lines[gone + 1]
        stamps = lines[gone - 1].split()
        assert stamps[:2] == ["rm", "-f"] and len(stamps) == 5, "an interrupted installation would count as finished"


def made(*words):
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "CONSTRAINTS"))}
    own.pop("VENV", None)  # these tests are run by `make latest` too, which hands down what it was given
    done = subprocess.run(["make", "-n", "-B", *words], cwd=ROOT, capture_output=True, text=True, check=True, env=own)
    return done.stdout.splitlines()


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_what_a_newcomer_types_installs_what_was_tested_and_latest_does_not(target):
    installs = [line for line in made(target) if "pip install" in line]
    assert installs and all("--constraint constraints.txt" in line for line in installs)
    assert not [line for line in made("latest") if "--constraint" in line]
