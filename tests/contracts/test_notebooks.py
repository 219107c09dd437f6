"""The notebooks of the documentation run, need no download, and show what is kept in them.

After a change: `python tests/contracts/test_notebooks.py` runs them all and keeps their outputs.
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXACT = ("benchmark",)
"""Notebooks whose text is the same on every machine: figures of vectors that are made there."""


def run(path: Path, folder: str | Path):
    """A notebook with fresh outputs, run in a folder, without progress and what goes to standard error."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=280, kernel_name="python3", resources=place, record_timing=False).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not is_passing(output)]
    notebook = nbformat.reads(nbformat.writes(notebook).replace(str(folder), "/here"), as_version=4)
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def is_passing(output):
    """Whether an output is progress or a message."""
    return output.get("name") == "stderr" or output.get("data", {}).get("text/plain", "").startswith("<IPython.core")


def kinds(cell):
    """What kinds of output a cell has."""
    return [sorted(output.get("data", {output.get("name", ""): ""})) for output in cell.get("outputs", [])]


def texts(cell):
    """The text that a cell prints or shows."""
    return [output.get("text", output.get("data", {}).get("text/plain", "")) for output in cell.get("outputs", [])]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_kept_in_it(path, tmp_path):
    kept, fresh = nbformat.read(path, as_version=4), run(path, tmp_path)
    assert any(kinds(cell) for cell in kept.cells)
    assert [kinds(cell) for cell in fresh.cells] == [kinds(cell) for cell in kept.cells]
    if path.stem in EXACT:
        assert [texts(cell) for cell in fresh.cells] == [texts(cell) for cell in kept.cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_kept_notebook_is_small_names_no_machine_and_begins_with_a_title(path):
    text = path.read_text()
    assert len(text) < 300_000
    assert re.findall(r"/tmp/|/root/|/home/|/Users/", text) == []
    assert nbformat.read(path, as_version=4).cells[0].source.startswith("# ")


if __name__ == "__main__":
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(run(path, folder), path)
