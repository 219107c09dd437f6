"""Image encoders of transformers and timm through the stages: towers, features, training, export, index and search."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf

from cirray.core.artifacts import read_manifest
from cirray.core.config import load_config, validate
from cirray.core.errors import ArtifactError
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.features.config import EmbedRun, TowersRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.features.towers import run_towers
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.inputs import RecipesBeside, tokens_of
from cirray.pipelines.search.config import IndexRun, SearchRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.search.search import run_search
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train
from cirray.pipelines.weights.config import ConvertRun, ExportRun
from cirray.pipelines.weights.convert import run_convert
from cirray.pipelines.weights.export import run_export

small = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "small_encoders.py")))
ENCODERS = {"dinov2 with registers": (17, 16), "timm": (17, 16)}
READER = {"qformer": {"width": 16, "heads": 2, "queries": 2, "intermediate": 32}}


def save(name, folder):
    if name != "timm":
        return small.save(name, folder)
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **sizes), str(folder), safe_serialization=True)
    return str(folder)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("w") / "world"
    sizes = {"labelled_families": 12, "heldout_families": 3, "pool_families": 0, "gallery_references": 3}
    run_world(WorldRun.model_validate({"shapes": sizes, "out": str(root)}))
    return {"folder": {"root": str(root)}}


@pytest.fixture(scope="module", params=ENCODERS)
def home(request, world, tmp_path_factory):
    """A checkpoint, trained a few steps over an image encoder."""
    root = tmp_path_factory.mktemp("home")
    source = save(request.param, root / "source")
    run_towers(load_config(TowersRun, None, [f"vision={source}", f"out={root / 'towers'}"]))
    embed = {"data": world, "tower": str(root / "towers"), "out": str(root / "features"), "ray": {"enabled": False}}
    run_embed(validate(EmbedRun, embed))
    train = {
        "data": world, "features": [str(root / "features")], "towers": str(root / "towers"), "out": str(root / "c"),
        "encoder": {"settings": {**READER, "embed_dim": 8}}, "ray": {"enabled": False},
        "training": {"steps": 4, "batch": 8, "log_every": 2, "seed": 1},
    }  # fmt: skip
    run_train(validate(TrainRun, train))
    return SimpleNamespace(root=root, name=request.param, source=source)


def test_features_and_plans_have_the_encoders_tokens(home):
    assert tuple(read_manifest(str(home.root / "features")).extra["shape"]) == ENCODERS[home.name]
    for place in (home.source, str(home.root / "towers")):
        tokens = tokens_of(("no/features",), place, PlanConfig(), RecipesBeside())
        assert (tokens.count, tokens.width) == ENCODERS[home.name]


def test_a_checkpoint_holds_the_tower_as_it_was_saved(home):
    towers, kept = home.root / "towers" / "vision", home.root / "c" / "model" / "vision"
    assert (kept / "model.safetensors").read_bytes() == (towers / "model.safetensors").read_bytes()
    assert not any(name.startswith(("head", "pooler")) for name in load_file(str(kept / "model.safetensors")))
    assert json.loads((kept / "preprocessor_config.json").read_text())["cirray_transform"]["size"] == 32


def test_a_gallery_is_indexed_and_searched(home, world):
    index = {"checkpoint": str(home.root / "c"), "features": [str(home.root / "features")], "data": world}
    manifest = run_index(validate(IndexRun, {**index, "out": str(home.root / "index"), "ray": {"enabled": False}}))
    names = sorted(path.stem for path in (Path(world["folder"]["root"]) / "gallery").iterdir())
    query = {"text": "make it red", "id": names[0], "k": 5, "out": str(home.root / "page.html")}
    found = run_search(
        validate(SearchRun, {**query, "checkpoint": str(home.root / "c"), "index": str(home.root / "index")})
    )
    assert manifest.counts["images"] == len(names) and len(found.results) == 5
    assert {row.id for row in found.results} <= set(names) - {names[0]}


def test_an_export_holds_the_same_tower(home):
    manifest = run_export(validate(ExportRun, {"model": str(home.root / "c"), "out": str(home.root / "exported")}))
    assert manifest.extra["vision_digest"] == read_manifest(str(home.root / "towers")).extra["encoder_digest"]


def test_a_generator_reads_the_encoders_tokens(home, world):
    run = load_config(
        GeneratorRun, {"data": world},
        [f"towers={home.root / 'towers'}", f"out={home.root / 'generator'}", "features=[]", "evaluate_pairs=0",
         "alignment_training.steps=2", "training.steps=2", "training.batch=4", "zero_shot=false"],
    )  # fmt: skip
    manifest = run_generator(run)
    assert manifest.kind == "generator"
    assert manifest.extra["encoder_digest"] == read_manifest(str(home.root / "towers")).extra["encoder_digest"]


def test_what_lavis_cannot_hold_is_refused_in_words(home):
    back = {"source": str(home.root / "c"), "to": "original", "out": str(home.root / "back")}
    with pytest.raises(ArtifactError, match="is trained over a .*; LAVIS' layout holds BLIP-2's vision tower alone"):
        run_convert(validate(ConvertRun, back))
