"""`cirray index --model`: published weights are opened once and searched without training."""

import json
import shutil
from pathlib import Path

import numpy as np
import published
import pytest
import tiny_service
from transformers import Dinov2Config, Dinov2Model

import cirray
from cirray.cli.main import main
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ArtifactError, CirrayError, ConfigError, DataError
from cirray.index.latest import chosen
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.search_engine import SearchEngine
from cirray.serving.config import ServeRun


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with pictures, a CLIP, and an index of the pictures made with it."""
    home = tmp_path_factory.mktemp("published")
    tiny_service.write_pictures(home / "pictures")
    published.clip(home / "clip")
    run_index(of(home))
    return home


def of(home, **fields):
    given = {"root": str(home / "root"), "model": str(home / "clip"), "images": str(home / "pictures")}
    return IndexRun(**given | fields)


def engine(home, name="pictures-clip"):
    manifest = read_manifest(home / "root" / "indexes" / name, "index")
    return SearchEngine.open(manifest.config["checkpoint"], str(home / "root" / "indexes" / name))


def test_the_model_is_opened_once_and_the_index_is_named_after_pictures_and_model(home):
    (opened,) = (home / "root" / "models").iterdir()
    before = read_manifest(opened, "checkpoint")
    assert before.extra["composition"] == "sum" and before.extra["weight"] == 0.5
    again = run_index(of(home))
    assert again.counts == {"images": 24, "rejected": 1} and read_manifest(opened).created == before.created
    assert (home / "root" / "indexes" / "pictures-clip" / "manifest.json").is_file()


def test_a_query_of_the_index_is_the_model_s_own_and_its_weight_moves_it(home):
    found, model = engine(home), cirray.load(str(home / "clip"))
    picture = (home / "pictures" / "plain" / "02.png").read_bytes()
    for weight in (None, 0.0, 0.3, 1.0):
        query = found.prepare("paint it blue", picture, weight=weight)
        wanted = model.queries([picture], ["paint it blue"], None if weight is None else [weight])
        assert np.allclose(found.encode([query]), wanted, atol=1e-6), weight
    alone = found.search(image=picture, k=1)
    assert alone.ids == ("plain/02",) and alone.ids == found.search("blue", picture, k=1, weight=0).ids
    both = [found.prepare("blue"), found.prepare("blue", gallery_id="plain/02", weight=1.0)]
    first, second = found.search_many(both)
    assert first.ids == found.search("blue", picture, weight=1.0).ids and second.ids[0] == first.ids[0]
    assert found.search("blue", picture, weight=0.9).scores != found.search("blue", picture).scores


def test_another_composition_is_another_checkpoint_over_the_same_vectors(home):
    manifest = run_index(of(home, composition="slerp", weight=0.7))
    assert (home / "root" / "indexes" / "pictures-clip-slerp-0.7").is_dir()
    found = engine(home, "pictures-clip-slerp-0.7")
    assert (found.composition.name, found.composition.weight) == ("slerp", 0.7)
    assert manifest.extra["encoder_digest"] == engine(home).gallery.meta.encoder_digest


def test_a_checkpoint_and_an_export_of_ours_are_models_too(home, tmp_path):
    (opened,) = [
        path for path in (home / "root" / "models").iterdir() if "slerp" not in read_manifest(path).extra["composition"]
    ]
    run_index(of(home, model=str(opened), out=str(tmp_path / "a")))
    assert read_manifest(tmp_path / "a").config["checkpoint"] == str(opened)
    shutil.copytree(opened / "model", tmp_path / "export")
    run_index(of(home, model=str(tmp_path / "export"), composition="text", out=str(tmp_path / "b")))
    checkpoint = read_manifest(tmp_path / "b").config["checkpoint"]
    assert read_manifest(checkpoint).extra["composition"] == "text"
    tokens = [np.load(folder / "tokens.npy") for folder in (tmp_path / "a", tmp_path / "b")]
    assert np.array_equal(*tokens)
    with pytest.raises(DataError, match="composes by 'text', in which the text has no weight"):
        SearchEngine.open(checkpoint, str(tmp_path / "b")).search("blue", gallery_id="plain/02", weight=0.5)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"composition": "blend"}, ConfigError, "Unknown composition without training 'blend'.*Known: .*slerp"),
        ({"composition": "combiner"}, ConfigError, "'combiner' must be trained first"),
        ({"composition": "text", "weight": 0.3}, ConfigError, "weight=0.3 has no effect on the composition 'text'"),
        ({"model": "", "composition": "sum"}, ConfigError, "name one, or leave them out"),
        ({"model": "somebody/nothing"}, ArtifactError, "'somebody/nothing' is no folder.*Put config.json, model.safet"),
        ({"model": "ViT-B-32/laion2b_s34b_b79k"}, ArtifactError, "Fetch open_clip_model.safetensors of laion/CLIP-ViT"),
        ({"model": "ViT-B-32/laion2b"}, ArtifactError, "Unknown weights of ViT-B-32 'laion2b'"),
        ({"model": "ViT-B-32/openai"}, ArtifactError, "Name ViT-B-32-quickgelu/openai"),
        ({"model": "hf-hub:somebody/nothing"}, ArtifactError, "Put open_clip_config.json"),
        ({"model": "nothing"}, ConfigError, "model 'nothing' is no encoder of images and texts"),
        ({"images": "EMPTY"}, DataError, "holds no image"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_sentence(home, fields, kind, words, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("cirray.models.sources.hub.HfApi", NoNetwork)
    (tmp_path / "empty").mkdir()
    fields = {name: str(tmp_path / "empty") if value == "EMPTY" else value for name, value in fields.items()}
    with pytest.raises(kind, match=words):
        run_index(of(home, out=str(tmp_path / "index"), **fields))
    assert not (tmp_path / "index").exists()


class NoNetwork:
    def model_info(self, repository, timeout):
        raise OSError("Name or service not known")


def test_a_model_without_a_text_tower_is_told_so(home, tmp_path):
    Dinov2Model(Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "d")
    with pytest.raises(ConfigError, match="no encoder of images and texts: it is a 'dinov2'.*Give .*CLIP.*SigLIP"):
        run_index(of(home, model=str(tmp_path / "d"), out=str(tmp_path / "index")))
    published.clip(tmp_path / "half").vision_model.save_pretrained(tmp_path / "vision")
    path = tmp_path / "vision" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "clip_vision_model"}))
    with pytest.raises(CirrayError, match="no encoder of images and texts"):
        run_index(of(home, model=str(tmp_path / "vision"), out=str(tmp_path / "index")))


def test_an_index_of_another_model_is_refused(home, tmp_path):
    published.clip(tmp_path / "other", seed=9)
    run_index(of(home, model=str(tmp_path / "other"), out=str(tmp_path / "index")))
    with pytest.raises(CirrayError, match="vectors cannot be compared"):
        SearchEngine.open(
            read_manifest(tmp_path / "index").config["checkpoint"], str(home / "root/indexes/pictures-clip")
        )


def test_the_folder_of_a_hub_repository_in_the_cache_is_used_without_asking_the_hub(home, tmp_path, monkeypatch):
    monkeypatch.setattr("cirray.models.sources.hub.HfApi", NoNetwork)
    snapshot = tmp_path / "hub" / "models--some--clip" / "snapshots" / ("a" * 40)
    shutil.copytree(home / "clip", snapshot)
    refs = Path(snapshot.parents[1]) / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    text = ["paint it blue"]
    assert np.array_equal(cirray.load("some/clip").texts(text), cirray.load(str(home / "clip")).texts(text))


def cirray_says(home, *words):
    """A command line, run in this process; returns its exit status."""
    return main([*words, "--root", str(home / "root")])


def test_search_and_serve_take_the_last_index_and_the_model_that_made_it(home, tmp_path, capsys):
    assert cirray_says(home, "index", "--model", str(home / "clip"), "--images", str(home / "pictures")) == 3
    published.siglip(tmp_path / "siglip")
    asked = ("index", "--model", str(tmp_path / "siglip"), "--images", str(home / "pictures"))
    assert cirray_says(home, *asked, "--out", str(tmp_path / "siglip-index")) == 3
    picture, page = home / "pictures" / "plain" / "02.png", tmp_path / "page.html"
    found = (
        ("--text", "blue"),
        ("--image", str(picture)),
        ("--image", str(picture), "--text", "blue", "--weight", "0"),
    )
    for words in found:
        assert cirray_says(home, "search", *words, "--k", "3", "--out", str(page)) == 0
        said = capsys.readouterr()
        assert str(tmp_path / "siglip-index") in said.err and "models/siglip" in said.err
        assert len(said.out.splitlines()) >= 3 and page.read_text().count("<figure>") == 3
    assert chosen(ServeRun(root=str(home / "root")))[1] == str(tmp_path / "siglip-index")
    shutil.rmtree(tmp_path / "siglip-index")  # then the usual one, which is not there
    for words in (("search", "--text", "blue"), ("serve",)):
        assert cirray_says(home, *words) == 2
        assert "There is no index below" in (told := capsys.readouterr().err) and "cirray index --model" in told
    assert cirray_says(home, "search", "--text", "blue", "--index", "typo") == 2
    assert "at 'typo' does not exist" in capsys.readouterr().err
    named = ServeRun(root=str(home / "root"), index="@indexes/pictures-clip")
    assert chosen(named)[0] == read_manifest(named.index).config["checkpoint"]
    assert cirray_says(home, "search", "--index", "@indexes/pictures-clip") == 2
    assert "nothing to search by" in capsys.readouterr().err
