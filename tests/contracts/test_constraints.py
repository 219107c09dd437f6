"""`constraints.txt` says what was tested: every direct dependency, inside the bounds of `pyproject.toml`; no host."""

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
    return [Requirement(text) for text in (*project["dependencies"], *(item for extra in extras for item in extra))]


def test_a_line_is_a_name_and_a_version():
    assert [line for line in LINES if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line)] == []


def test_every_direct_dependency_is_pinned_inside_its_bounds():
    wanted = [item for item in requirements() if item.marker is None or item.marker.evaluate()]
    odd = [str(item) for item in wanted if PINNED.get(canonicalize_name(item.name), "none") not in item.specifier]
    assert len(wanted) > 20 and odd == []


@pytest.mark.parametrize("target", ["install", "demo", "test"])
def test_what_a_newcomer_types_installs_what_was_tested_and_latest_does_not(target):
    def said(*words):
        return subprocess.run(["make", "-n", "-B", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    installs = [line for line in said(target).splitlines() if "pip install" in line]
    assert installs and all("--constraint constraints.txt" in line for line in installs)
    assert "--constraint" not in said("latest")
