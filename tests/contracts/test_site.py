"""The documentation site: it builds without a warning, asks no other host for anything, shows the public functions."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cirray

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        ".mkdocs.yml",
        "--site-dir",
        str(folder),
    ]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_menu_and_built(site):
    menu = (ROOT / ".mkdocs.yml").read_text().partition("\nnav:")[2]
    sources = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")]
    pages = [path.relative_to(ROOT / "docs").with_suffix(".md") for path in sources]
    assert len(pages) > 20
    assert [str(page) for page in pages if f": {page}\n" not in menu] == []
    built = [page.with_suffix("") / "index.html" if page.name != "index.md" else Path("index.html") for page in pages]
    assert [str(page) for page in built if not (site / page).is_file()] == []


def test_a_notebook_is_a_page_with_its_code_and_what_it_showed(site):
    page = (site / "notebooks" / "benchmark" / "index.html").read_text()
    assert "cirray" in page and "Download this notebook" in page and "it keeps every rule" in page
    assert (site / "notebooks" / "benchmark.ipynb").is_file()


def test_a_page_asks_no_other_host_for_anything(site):
    asked = r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*>"""
    for page in site.rglob("*.html"):
        assert re.findall(asked, page.read_text()) == [], page
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)]*", style.read_text()) == [], style


def test_the_reference_shows_the_public_functions_with_what_they_take_and_raise(site):
    shown = "".join(page.read_text() for page in (site / "api").rglob("*.html"))
    for anchor in ("cirray.load", "cirray.gallery.Gallery.search", "cirray.serving.client.SearchClient"):
        assert f'id="{anchor}"' in shown
    assert "Raises:" in shown and str(cirray.load.__doc__).partition(":")[0] in shown
