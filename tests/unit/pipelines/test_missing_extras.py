"""A library of an extra that is not installed: the verb that needs it says in one sentence what to type."""

import runpy
import sys
from pathlib import Path

import pytest
import yaml

from cirray.cli.main import main
from cirray.core.errors import ConfigError
from cirray.data.config import ShapesConfig
from cirray.data.shapes.world import write_world
from cirray.index import config as backends
from cirray.index import faiss_library
from cirray.pipelines.features.config import TowersRun
from cirray.pipelines.features.towers import run_towers

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))
SERVICE = runpy.run_path(str(FIXTURES / "tiny_service.py"))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Config files of three verbs, with their inputs."""
    root = tmp_path_factory.mktemp("x")
    (root / "finetune.yaml").write_text(yaml.safe_dump({**TINY["make"](root), "init": "", "reverse_texts": []}))
    sizes = {"labelled_families": 6, "heldout_families": 3, "pool_families": 0, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root / "few")
    run_towers(TowersRun(out=str(root / "shipped")))
    few = {"data": {"folder": {"root": str(root / "few")}}, "towers": str(root / "shipped"), "features": []}
    (root / "train-generator.yaml").write_text(yaml.safe_dump(few))
    checkpoint, images = SERVICE["write_checkpoint"](root / "checkpoint"), SERVICE["write_pictures"](root / "pictures")
    (root / "index.yaml").write_text(yaml.safe_dump({"checkpoint": checkpoint, "images": str(images)}))
    return root


def hide(monkeypatch, library):
    """As if a library were not installed."""
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    faiss_library.faiss_library.cache_clear()


@pytest.mark.parametrize(
    "library, extra, verb, words",
    [
        ("deepspeed", "train", "finetune", ["training.objective=finetune", "training.engine=deepspeed"]),
        ("peft", "train", "train-generator", ["generator.settings.tuning=lora"]),
        ("faiss", "cpu", "index", ["index=faiss"]),
    ],
)
def test_a_verb_says_which_library_is_missing_and_the_line_that_installs_it(
    root, tmp_path, monkeypatch, capsys, library, extra, verb, words
):
    hide(monkeypatch, library)
    assert main([verb, str(root / f"{verb}.yaml"), f"out={tmp_path / 'out'}", *words]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"needs the library {library}, which is not installed: pip install 'cirray[{extra}]'" in error
    assert words[-1].partition("=")[2] in error and not (tmp_path / "out").exists()


def test_without_faiss_an_index_is_exact_unless_it_says_faiss(root, tmp_path, monkeypatch, capsys):
    hide(monkeypatch, "faiss")
    told = list[str]()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("cirray.pipelines.search.making._LOGGER.info", lambda words, *given: told.append(words % given))
    assert backends.usual_kind() == "exact"
    assert main(["index", str(root / "index.yaml"), f"out={tmp_path / 'out'}", "index.kind=exact"]) == 3
    assert "images" in capsys.readouterr().out
    assert "FAISS is not installed" in told[0] and "pip install 'cirray[cpu]'" in told[0]


def test_two_distributions_of_faiss_side_by_side_are_refused_with_what_to_type(monkeypatch):
    faiss_library.faiss_library.cache_clear()
    monkeypatch.setattr(faiss_library, "installed", lambda *names: list(names))
    with pytest.raises(ConfigError, match="both installed.*pip uninstall -y faiss-cpu faiss-gpu, then pip install"):
        faiss_library.faiss_library()
    monkeypatch.undo()
    assert faiss_library.faiss_library().__name__ == "faiss"
