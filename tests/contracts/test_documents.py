"""Documentation and configuration that cannot drift: every YAML resolves, every command, path and import is there."""

import ast
import importlib
import re
import runpy
import shlex
import subprocess
import tomllib
from itertools import islice
from pathlib import Path

import pytest
import yaml

from cirray.cli.main import configured
from cirray.cli.verb import VERBS, split_verb, verb
from cirray.data.config import ShapesConfig
from cirray.data.shapes.world import describe, families
from cirray.serving.client import SearchClient

ROOT = Path(__file__).resolve().parents[2]
FILES = runpy.run_path(str(ROOT / "tests" / "fixtures" / "recipe_files.py"))
README = (ROOT / "README.md").read_text()
PAGES = "".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
HISTORY = (ROOT / "docs" / "LOG.md").read_text()
TEXT = README + PAGES + CONTRIBUTING
OUTSIDE = re.compile(r"(src|clip4cir|blip24cir|MTST_PTHA)/.*|BLIP_tdm.py|.*/DATASET/.*")
"""Files of other projects, named as sources, and a pattern of names."""


def page_commands() -> list[str]:
    """Every command line inside the pages' bash blocks, once, continuation lines joined, comments dropped."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", TEXT, flags=re.S):
        for line in block.replace("\\\n", " ").splitlines():
            text = line.split(" #")[0].strip()
            if text and not text.startswith("#"):
                commands.append(text)
    return list(dict.fromkeys(commands))


@pytest.mark.parametrize("path", FILES["RECIPES"], ids=FILES["name_of"])
def test_every_recipe_resolves_and_so_does_every_run_that_its_comment_names(path):
    for assignments in FILES["runs_of"](path).values():
        FILES["config_of"](FILES["name_of"](path), (), assignments)


def test_every_recipe_that_a_page_names_is_there():
    names = {FILES["name_of"](path) for path in FILES["RECIPES"]}
    folders = "|".join({name.partition("/")[0] for name in names})
    begins = "|".join(VERBS)
    shorthand = re.findall(rf"`((?:\{{[\w,]+\}}|{folders})/(?:{begins})(?:-[\w{{}},-]+)?)`", README + PAGES)
    assert len(shorthand) > 30
    assert [name for short in shorthand for name in spread(short) if name not in names] == []


def spread(name):
    """`{a,b}/c` as `a/c` and `b/c`."""
    found = re.search(r"\{([\w,]+)\}", name)
    if not found:
        return [name]
    return [full for word in found[1].split(",") for full in spread(name[: found.start()] + word + name[found.end() :])]


def test_recipes_exist_for_every_stage_of_the_embedded_world():
    named = {FILES["verb_of"](path) for path in FILES["RECIPES"] if path.parent.name == "shapes"}
    wanted = "towers embed train-generator mine generate check pretrain finetune tune evaluate index"
    assert named >= set(wanted.split())


@pytest.mark.parametrize("command", [c for c in page_commands() if c.split()[0] == "cirray"])
def test_every_cirray_command_of_the_pages_parses(command, monkeypatch, tmp_path):
    name, arguments = split_verb(shlex.split(command)[1:])
    if "--help" in arguments or name.startswith("--"):
        return
    (tmp_path / "project.yaml").write_text("steps: {}\n")
    monkeypatch.chdir(tmp_path if "project.yaml" in arguments else ROOT)
    words = arguments[: arguments.index(">")] if ">" in arguments else arguments
    configured(verb(name), [word for word in words if word != "--print-config"])


def test_every_verb_that_a_sentence_names_exists():
    named = re.findall(r"`cirray ([a-z][a-z-]*)[^`]*`", TEXT)
    assert len(named) > 60
    assert sorted({name for name in named if name not in VERBS}) == []


def test_every_path_that_a_sentence_names_is_there():
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = [f"/{name}" for name in tracked.stdout.split() if (ROOT / name).exists()]
    paths = re.findall(
        r"`((?:[\w.-]+/)*[\w-]+\.py|(?:cirray|jobs|tests|docs|serve_configs)/[\w./-]*)`", TEXT.replace(HISTORY, "")
    )
    assert len(paths) > 150
    ends = {path: f"/{path}" for path in paths if not OUTSIDE.fullmatch(path)}
    assert sorted({path for path, end in ends.items() if not any(has(file, end) for file in files)}) == []


def test_the_tour_tells_the_floors_as_they_are():
    pieces = re.split(r"\((?:floor )?(\d)\)", CONTRIBUTING.partition("| I want")[0])
    told = {}
    for text, floor in zip(pieces[::2], pieces[1::2], strict=False):
        names = [Path(name).stem for name in re.findall(r"`([^` ]+)`", text)]
        told |= {name: int(floor) for name in names if not name.startswith("*")}
    assert told == tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["cirray"]["layers"]


def has(file: str, end: str) -> bool:
    """Whether a file has that path, or lies in that folder."""
    return f"{end}" in file if end.endswith("/") else file.endswith(end) or f"{end}/" in file


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, flags=re.S))
def test_every_import_that_a_page_shows_works(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []


def asked(command: str) -> tuple[str, str]:
    """Reference id and text of a `cirray search` line."""
    words = shlex.split(command)
    return words[words.index("--id") + 1], words[words.index("--text") + 1]


def test_the_first_query_is_one_of_the_world_that_is_made_everywhere_it_is_shown():
    query = next(asked(command) for command in page_commands() if command.startswith("cirray search"))
    config = ShapesConfig()
    rows = [row for family in islice(families(config), 64) for row in describe(family, config)["queries"]]
    assert query in [(row["reference"], row["modification"]) for row in rows]
    assert asked(verb("search").example) == query
    assert f'-F gallery_id={query[0]} -F "text={query[1]}"' in PAGES and f'the text "{query[1]}"' in README
    assert f'client.search("{query[1]}", gallery_id="{query[0]}")' in str(SearchClient.__doc__)


def test_every_script_and_target_the_pages_name_exists():
    makefile = (ROOT / "Makefile").read_text()
    missing = []
    for command in page_commands():
        words = shlex.split(command)
        if words[0] == "make":
            missing += [word for word in words[1:] if not re.search(rf"^{word}:", makefile, flags=re.M)]
        files = [word for word in words if re.match(r"^(jobs|serve_configs)/\S+\.(py|yaml)$", word)]
        missing += [word for word in files if not (ROOT / word).exists()]
    assert missing == []


def test_every_job_is_thin():
    for path in (ROOT / "jobs").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name


def test_serve_configs_name_importable_builders():
    for path in (ROOT / "serve_configs").glob("*.yaml"):
        tree = yaml.safe_load(path.read_text())
        tree = yaml.safe_load(tree["spec"]["serveConfigV2"]) if tree.get("kind") == "RayService" else tree
        for application in tree["applications"]:
            module, _, name = application["import_path"].partition(":")
            source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
            assert f"def {name}(" in source


def idea_files():
    """Files of the first table of docs/METHODS.md; a folder stands for the files that hold its ideas."""
    text = (ROOT / "docs" / "METHODS.md").read_text().partition("## The comparison")[0]
    folders = {
        "cirray/models/words/": ["cirray/models/words/injection.py"],
        "cirray/training/zeroshot/": [f"cirray/training/zeroshot/{n}.py" for n in ("token_search", "text_only")],
    }
    named = [path for path in re.findall(r"`(cirray/[\w/.]+)`", text)]
    return [path for name in named for path in folders.get(name, [name])]


@pytest.mark.parametrize("name", idea_files())
def test_a_papers_idea_stands_in_one_short_file_with_paper_and_equation(name):
    text = (ROOT / name).read_text()
    told = ast.get_docstring(ast.parse(text)) or ""
    assert len(text.splitlines()) <= 260
    assert "docs/PAPERS.md#" in told, "the module cites no paper"
    assert re.search(r" (=|<=) |1 - cos|mean squared error", told), "the module has no equation"
