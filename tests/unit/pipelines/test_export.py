"""Exported folders: complete, described, and equal in vectors to what was exported."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from made_artifacts import MadeRun, stage_of

import cirray
from cirray.core.artifacts import open_stage, read_manifest
from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.generators.store import save_template
from cirray.generators.template import TemplateGenerator
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train
from cirray.pipelines.weights.config import ExportRun
from cirray.pipelines.weights.export import run_export
from cirray.pipelines.weights.hub import card_metadata

FIXTURES = Path(__file__).parents[2] / "fixtures"
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))
PIPELINE = SimpleNamespace(**runpy.run_path(str(FIXTURES / "tiny_pipeline.py")))
DUAL = {"text": {"width": 16, "layers": 1, "heads": 2, "intermediate": 16}, "embed_dim": 8, "image_projection": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two checkpoints, and pictures."""
    root = tmp_path_factory.mktemp("e")
    fields = {**TINY["make"](root), "training": {"steps": 2, "batch": 8}}
    run_train(validate(TrainRun, {**fields, "out": str(root / "qformer")}))
    run_train(validate(TrainRun, {**fields, "encoder": {"kind": "dual", "settings": DUAL}, "out": str(root / "dual")}))
    PIPELINE.write_images(root / "pictures", 3, size=40)
    return root


def pictures(home):
    return sorted(str(path) for path in (home / "pictures").glob("*.png"))


@pytest.mark.parametrize("name", ["qformer", "dual"])
def test_an_exported_folder_gives_the_same_vectors_in_one_line(home, name, tmp_path):
    run_export(ExportRun(model=str(home / name), out=str(tmp_path / "folder")))
    exported, trained = cirray.load(str(tmp_path / "folder")), cirray.load(str(home / name))
    texts = ["make it red", "remove the square", "move it"]
    ours, theirs = (model.queries(pictures(home), texts) for model in (exported, trained))
    assert np.array_equal(ours, theirs) and exported.digest == trained.digest
    assert cirray.load(str(home / name / "model")).digest == exported.digest
    gallery = exported.images(pictures(home))
    assert np.array_equal(gallery, trained.images(pictures(home)))
    assert exported.score(ours, gallery).shape == (3, 3)
    other = cirray.load(str(home / ("dual" if name == "qformer" else "qformer")))
    assert not np.array_equal(other.queries(pictures(home), texts)[:, :4], ours[:, :4])


def test_the_folder_holds_weights_config_preprocessor_tokenizer_and_a_card(home, tmp_path):
    manifest = run_export(
        ExportRun(model=str(home / "qformer"), out=str(tmp_path / "x"), name="my model", license="mit")
    )
    names = {str(path.relative_to(tmp_path / "x")) for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "README.md"} <= names
    assert {"vision/config.json", "vision/model.safetensors", "recipe.json", "manifest.json"} <= names
    card = (tmp_path / "x" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "mit" and front["library_name"] == "cirray"
    source = read_manifest(home / "qformer")
    assert "# my model" in card and "steps: 2" in card and "val_R@10" in card
    assert source.digest in card and manifest.extra["encoder_digest"] in card and source.inputs["features 0"] in card
    assert str(home) not in card  # no place of the machine it was made on
    assert json.loads((tmp_path / "x" / "recipe.json").read_text())["config"] == source.identity


def test_figures_of_reports_go_into_the_card(home, tmp_path):
    stage = stage_of(str(tmp_path / "report"), "report", {})
    (stage.local / "x").write_text("x")
    stage.publish({}, {"R@1": 0.5}, {"protocol": "40 queries over 300 images", "table": "R@1  50.0"})
    run_export(ExportRun(model=str(home / "qformer"), reports=(str(tmp_path / "report"),), out=str(tmp_path / "x")))
    card = (tmp_path / "x" / "README.md").read_text()
    assert "40 queries over 300 images" in card and "R@1  50.0" in card


def test_a_generator_is_exported_too(tmp_path):
    stage = stage_of(str(tmp_path / "generator"), "generator", {"seed": 1})
    save_template(TemplateGenerator("change {reference}", 0), stage.local)
    stage.publish({}, {"token_loss": 1.25})
    run_export(ExportRun(model=str(tmp_path / "generator"), out=str(tmp_path / "x")))
    assert cirray.load(str(tmp_path / "x")).prompt_version == cirray.load(str(tmp_path / "generator")).prompt_version
    assert "token_loss | 1.25" in (tmp_path / "x" / "README.md").read_text()


def test_what_cannot_be_exported_or_loaded_is_refused_in_words(home, tmp_path):
    with pytest.raises(ArtifactError, match="kind 'features'"):
        run_export(ExportRun(model=str(home / "features"), out=str(tmp_path / "x")))
    with pytest.raises(ConfigError, match="no encoder of images and texts.*a checkpoint or export of cirray"):
        cirray.load(str(home / "features"))
    with pytest.raises(ConfigError, match="no encoder of images and texts"):
        cirray.load(str(tmp_path / "nothing"))
    encoder = cirray.load(str(home / "qformer"))
    with pytest.raises(DataError, match="2 images and 1 texts"):
        encoder.queries(pictures(home)[:2], ["one"])
    with pytest.raises(DataError, match="no image to encode"):
        encoder.images([])


def test_importing_the_package_for_load_stays_light():
    script = "import sys, cirray; assert callable(cirray.load); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Evaluated(MadeRun):
    """An evaluation, as far as a card reads it."""

    data: dict[str, str]


class Hub:
    """The hub's client, with a folder for the hub."""

    def __init__(self, root, known=True):
        self.root, self.known = root, known

    def __call__(self):
        return self

    def create_repo(self, name, repo_type, private, exist_ok):
        if not self.known:
            raise PermissionError("401 for token hf_secret")
        return f"hub://{name}"

    def upload_folder(self, repo_id, repo_type, folder_path, ignore_patterns, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, ignore=shutil.ignore_patterns(*ignore_patterns))


def test_an_export_is_pushed_with_a_card_that_the_hub_reads(home, tmp_path, monkeypatch):
    stage = open_stage(Evaluated(data={"format": "cirr"}, out=str(tmp_path / "report")), "report")
    (stage.local / "x").write_text("x")
    stage.publish({}, {"R@1": 0.5, "per_edit": {}}, {"protocol": "CIRR val", "table": "R@1  50.0"})
    fields = {"model": str(home / "qformer"), "reports": (str(tmp_path / "report"),), "out": str(tmp_path / "x")}
    told = {"base_models": ("some/tower",), "datasets": ("cirr",), "push": "me/mine"}
    monkeypatch.setattr("cirray.pipelines.weights.hub.HfApi", Hub(tmp_path, known=False))
    with pytest.raises(ArtifactError, match="is written, but the hub did not take it as 'me/mine'") as refused:
        run_export(ExportRun(**fields, **told))
    assert "secret" not in str(refused.value)
    monkeypatch.setattr("cirray.pipelines.weights.hub.HfApi", Hub(tmp_path / "hub"))
    run_export(ExportRun(**fields, **told))
    card = ModelCard.load(tmp_path / "hub" / "me" / "mine" / "README.md")
    assert card.data.base_model == ["some/tower"] and card.data.datasets == ["cirr"]
    (figure,) = card.data.eval_results
    assert (figure.dataset_type, figure.metric_name, figure.metric_value) == ("cirr", "R@1", 0.5)
    assert 'cirray.load("me/mine")' in card.text and not (tmp_path / "hub/me/mine/manifest.json").exists()
    assert cirray.load(str(tmp_path / "hub/me/mine")).digest == cirray.load(str(home / "qformer")).digest
    with pytest.raises(ConfigError, match="push='mine' is no hub id"):
        run_export(ExportRun(**fields, push="mine"))


def test_the_base_model_of_opened_weights_is_a_hub_id_and_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips" / "mine").mkdir(parents=True)
    for source, bases in (("owner/name", ["owner/name"]), ("clips/mine", None)):
        made = SimpleNamespace(config={"source": source})
        told = yaml.safe_load(card_metadata(ExportRun(out="x"), "retriever", made, []))
        assert told.get("base_model") == bases
