"""Sizes, docstrings and words that must not be committed."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted([*(ROOT / "cirray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
MAX_FUNCTION, MAX_FILE = 60, 500


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    long = [(node.name, node.end_lineno - node.lineno + 1) for node in functions(ast.parse(text))]
    assert [item for item in long if item[1] > MAX_FUNCTION] == []


@pytest.mark.parametrize("path", sorted((ROOT / "cirray").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_public_things_have_docstrings(path):
    tree = ast.parse(path.read_text())
    if path.name != "__init__.py" or tree.body:
        assert ast.get_docstring(tree), "the module has no docstring"
    nodes = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    nodes += [m for n in nodes if isinstance(n, ast.ClassDef) for m in n.body if isinstance(m, ast.FunctionDef)]
    missing = [n.name for n in nodes if not n.name.startswith("_") and not ast.get_docstring(n)]
    assert missing == []


def test_squeeze_always_names_its_dimension():
    offenders = []
    for path in (ROOT / "cirray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "squeeze":
                if not node.args and not node.keywords:
                    offenders.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert offenders == []


def test_no_machine_path_or_package_registry_is_named():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    pattern = re.compile("|".join([r"/wor" + r"k/", r"pypi\.or" + "g", r"registry\.npm" + "js", r"deb\.debi" + "an"]))
    offenders = []
    for name in names.stdout.split():
        path = ROOT / name
        if path.suffix in (".safetensors", ".png", ".ico") or not path.is_file():
            continue
        if pattern.search(path.read_text(errors="ignore")):
            offenders.append(name)
    assert offenders == []


def test_only_one_place_calls_transformers_readers_and_no_code_of_a_source_is_trusted():
    """So that no file of a model that someone found runs code, and nobody is asked whether it may."""
    calls = {}
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                trusted = {item.arg: ast.unparse(item.value) for item in node.keywords}.get("trust_remote_code")
                if name in ("from_pretrained", "HFTokenizer", "pipeline", "create_model") or trusted:
                    calls[f"{path.relative_to(ROOT)}: {name}"] = trusted
    assert calls == {
        "cirray/models/sources/pretrained.py: from_pretrained": "False",
        "cirray/models/towers/open_clip.py: HFTokenizer": "False",
        "cirray/models/towers/sentence_transformers.py: SentenceTransformer": "False",
    }


def test_only_one_place_opens_numpy_files():
    """For its lock."""
    said = re.compile(r"np\.load\(|np\.load,|open_memmap\([^)]*\"r")
    assert [
        path.name for path in PACKAGE if path.is_relative_to(ROOT / "cirray") and said.search(path.read_text())
    ] == ["arrays.py"]
