"""Released checkpoints at work: converted, embedded with, indexed, searched and evaluated; nothing is trained."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cirray.cli.main import main
from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.image_text import load_models
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.evaluation.evaluate import run_evaluate
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert import run_convert
from cirray.search_engine import SearchEngine

FIXTURES = Path(__file__).parents[2] / "fixtures"
lavis = SimpleNamespace(**runpy.run_path(str(FIXTURES / "lavis_layout.py")))
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_blip2.py")))
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A small world, an SPRC file as the authors save it, and a tokenizer."""
    root = tmp_path_factory.mktemp("c")
    world = {"labelled_families": 0, "heldout_families": 0, "pool_families": 0, "gallery_references": 4}
    run_world(WorldRun.model_validate({"shapes": world, "out": str(root / "world")}))
    lavis.write(root / "tuned.pt", "sprc", words=len(small.reader()))
    small.reader().save_pretrained(str(root / "words"))
    return root


def test_the_command_line_converts_embeds_indexes_searches_and_evaluates(home, capsys):
    heads = ["qformer_heads=2", "vision_heads=2", "to=checkpoint", f"tokenizer={home / 'words'}"]
    assert main(["convert", f"source={home / 'tuned.pt'}", *heads, f"out={home / 'sprc'}"]) == 0
    assert "checkpoint: " in capsys.readouterr().out
    data = {"folder": {"root": str(home / "world")}}
    embed = {"data": data, "parts": ["gallery"], "tower": str(home / "sprc"), "out": str(home / "features")}
    run_embed(validate(EmbedRun, {**embed, "ray": {"enabled": False}}))
    common = {"data": data, "checkpoint": str(home / "sprc"), "features": [str(home / "features")]}
    run_index(validate(IndexRun, {**common, "index": "exact", "out": str(home / "index")}))
    retriever = SearchEngine.open(str(home / "sprc"), str(home / "index"))
    image = retriever.gallery.ids[0]
    assert len(retriever.search("paint it blue", gallery_id=image, k=3).ids) == 3
    manifest = run_evaluate(validate(EvaluateRun, {**common, "html": False, "out": str(home / "report")}))
    assert manifest.counts["queries"] == 32 and 0 <= manifest.metrics["R@1"] <= 1


@pytest.fixture(scope="module")
def released(home):
    """Files of three formats as checkpoints, by format; fields of `model` change what the format says."""

    def made(kind, **fields):
        source, number = home / f"{kind}.pt", len(list(home.glob("made-*")))
        lavis.write(source, kind, words=len(small.reader()))
        run = {"source": str(source), "to": "checkpoint", "tokenizer": str(home / "words"), "qformer_heads": 2}
        run |= {"vision_heads": 2, "out": str(home / f"made-{number}")}
        run_convert(validate(ConvertRun, {**run, **({"encoder": {"settings": fields}} if fields else {})}))
        return load_models(run["out"])[0]

    return made


@pytest.mark.parametrize(
    ("kind", "mask", "readouts"),
    [("sprc", "true", {"cls"}), ("blip2", "true", {"cls"}), ("ptha", "ones", {"mean33", "cls"})],
)
def test_a_released_checkpoint_reads_texts_as_its_authors_code_does(released, kind, mask, readouts):
    model = released(kind)
    assert (model.config.text_mask, model.text_processor) == (mask, "blip_caption")
    assert {model.config.readout, model.active_readout} == readouts and model.config.temperature_clamp is None
    assert torch.equal(*(model.tokenize([text]).ids_BT for text in ('Paint it: "BLUE"!', "paint it blue")))


def test_a_field_that_is_given_changes_that_field_alone(released):
    plain, changed = released("sprc"), released("sprc", text_length=20, temperature=0.03)
    assert changed.config == plain.config.model_copy(update={"text_length": 20, "temperature": 0.03})
    assert changed.raw_temperature.item() == pytest.approx(0.03) != plain.raw_temperature.item()


def test_a_size_that_the_file_has_otherwise_is_refused_and_so_is_a_model_that_nobody_builds(released, home):
    with pytest.raises(ConfigError, match="encoder.settings.embed_dim is 64, but the checkpoint .* has 8 and keeps it"):
        released("sprc", embed_dim=64)
    with pytest.raises(ConfigError, match="encoder has no effect with to=weights"):
        validate(ConvertRun, {"source": str(home / "tuned.pt"), "encoder": {"settings": {"text_length": 20}}})


def test_a_refused_file_is_one_sentence_with_status_2_and_leaves_nothing_behind(home, capsys):
    (home / "broken.pt").write_bytes((home / "tuned.pt").read_bytes()[:4000])
    assert main(["convert", f"source={home / 'broken.pt'}", f"out={home / 'nothing'}"]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and "is a truncated torch file" in error
    assert not list(home.glob("nothing*"))


def test_a_dual_encoder_is_indexed_and_searched_like_any_other(tmp_path):
    dual = {
        "text": {"width": 16, "layers": 1, "heads": 2, "intermediate": 16},
        "embed_dim": 8,
        "image_projection": True,
    }
    fields = {
        **TINY["make"](tmp_path),
        "encoder": {"kind": "dual", "settings": dual},
        "training": {"steps": 2, "batch": 8},
    }
    run_train(validate(TrainRun, {**fields, "out": str(tmp_path / "dual")}))
    index = {"checkpoint": str(tmp_path / "dual"), "features": fields["features"], "data": None}
    run_index(validate(IndexRun, {**index, "index": "exact", "out": str(tmp_path / "index")}))
    retriever = SearchEngine.open(str(tmp_path / "dual"), str(tmp_path / "index"))
    answer = retriever.search("make it red", gallery_id=retriever.gallery.ids[0], k=4)
    assert len(answer.ids) == 4 and retriever.gallery.ids[0] not in answer.ids
