"""Sources: every citation of docs/PAPERS.md is there, every heading is cited, and no document outside is named."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/PAPERS.md"
PUBLISHED = r"et al\.|\.org/|RFC \d"
HISTORY = ("CHANGELOG.md", "docs/LOG.md", "LICENSE")
BINARY = (".safetensors", ".png", ".ico", ".npz", ".jpg", ".parquet")


def tracked() -> dict[str, str]:
    """Every text file of the project by name; this file is left out."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = (ROOT / name for name in listed.stdout.split())
    chosen = (path for path in files if path.is_file() and path.suffix not in BINARY and path != Path(__file__))
    return {str(path.relative_to(ROOT)): path.read_text(errors="ignore") for path in chosen}


FILES = tracked()


def headings() -> dict[str, str]:
    """Anchor -> the lines below its heading."""
    parts = re.split(r"^#{2,3} (.+)$", FILES[PAGE], flags=re.M)[1:]
    return {
        re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-"): text
        for title, text in zip(*[iter(parts)] * 2, strict=True)
    }


def citations() -> dict[str, list[str]]:
    """Anchor -> the files that cite it."""
    cited: dict[str, list[str]] = {}
    for name, text in FILES.items():
        for anchor in re.findall(r"PAPERS\.md#([\w-]+)", text if name != PAGE else ""):
            cited.setdefault(anchor, []).append(name)
    return cited


def strangers(text: str) -> list[str]:
    """What a text names that no reader of this project has: other documents, or sections of none."""
    named = r"\.\./shared|\bshared/(?:design|data)|\bdesign documents?\b"
    documents = [name for name in re.findall(r"[\w./-]+\.md\b", text) if not known(name)]
    sections = [
        line for line in text.splitlines() if re.search(r"\bsections? \d", line) and not re.search(PUBLISHED, line)
    ]
    return re.findall(named, text) + documents + sections


def known(name: str) -> bool:
    """Whether a page, or the notebook that becomes it, stands under this name here."""
    pages = [ROOT / folder / name.removeprefix("../") for folder in ("", "docs")]
    return any(page.is_file() or page.with_suffix(".ipynb").is_file() for page in pages)


def test_every_citation_has_its_heading():
    missing = {anchor: names for anchor, names in citations().items() if anchor not in headings()}
    assert missing == {}


def test_every_heading_is_cited_or_is_a_papers_own():
    idle = [
        name for name, text in headings().items() if name not in citations() and not re.search(r"(19|20)\d\d", text)
    ]
    assert idle == []


def test_no_file_names_a_document_that_readers_do_not_have():
    named = {name: strangers(text) for name, text in FILES.items() if not name.startswith(HISTORY)}
    assert {name: found for name, found in named.items() if found} == {}


def test_an_unknown_document_or_section_would_be_found():
    assert strangers("the loss of notes.md") == ["notes.md"]
    assert strangers("PTHA, section 5") == ["PTHA, section 5"]
    assert strangers("Li et al. 2023, section 3; docs/PAPERS.md; RFC 8259, section 6") == []
