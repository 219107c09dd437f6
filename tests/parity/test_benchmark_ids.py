"""The table of ids in docs/BENCHMARKS.md holds what the readers give."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

from cirray.data.config import DataConfig
from cirray.data.readers import READERS, read_dataset

ROOT = Path(__file__).resolve().parents[2]
MADE = SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "fixtures" / "benchmarks.py")))
TABLE = (ROOT / "docs" / "BENCHMARKS.md").read_text().partition("### Ids that")[2]
ROWS = {
    (match[1], match[2].strip(", ")): (match[3], match[4])
    for match in re.finditer(r"^\| `(\w+)`([^|]*?) \| .*? \| `([^`|]+)` \| .*? \| `([^`|]+)` \|$", TABLE, flags=re.M)
}
FOLDERS = {"imagenet_r": "imgnet"}
SMALL = ("lasco", "fashion200k")
"""Benchmarks of which no whole files lie here: their rows are of the small layout."""


def first(name, part, tmp_path):
    root = getattr(MADE, f"write_{name}")(tmp_path) if name in SMALL else MADE.SHARED / FOLDERS.get(name, name)
    if not root.is_dir():
        pytest.skip(f"the published files of {name} are not here")
    fields = {"task": f"focus_{part.split()[0]}"} if part else {}
    query = read_dataset(DataConfig.model_validate({"format": name, name: {"root": str(root), **fields}})).queries[0]
    return query.query_id, query.reference_id


def test_every_format_has_its_row():
    assert {name for name, _ in ROWS} == set(READERS.names()) and len(ROWS) == len(READERS.names()) + 1


@pytest.mark.parametrize(
    ("name", "part"), [row for row in ROWS if row[0] not in ("folder", "huggingface", "webdataset", "megapairs")]
)
def test_the_row_s_examples_are_the_first_query_and_its_reference(name, part, tmp_path):
    assert first(name, part.replace("tasks", "").strip(), tmp_path) == ROWS[name, part]
