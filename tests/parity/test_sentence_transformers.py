"""Models of sentence-transformers as models of search, against the library's own `encode`."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import embedders
import numpy as np
import published
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer

import cirray
from cirray.core.config import validate
from cirray.core.errors import ArtifactError, ConfigError
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index

TEXTS = ["paint the red circle blue", "remove it", "http://127.0.0.1:9/picture.png"]
"""The last one is an address that the library would fetch if it were given bare."""
SIZES = [(61, 40), (40, 90), (33, 33)]
CLOSE = 1e-5
KINDS = ("clip_module", "vision_language")


def photographs():
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (5, 7, 3), dtype=np.uint8) for _ in SIZES]
    return [Image.fromarray(pixels).resize(size) for pixels, size in zip(small, SIZES, strict=True)]


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("embedders")
    for kind in KINDS:
        getattr(embedders, kind)(root / kind)
    return root


@pytest.fixture(scope="module", params=KINDS)
def both(request, folders):
    folder = str(folders / request.param)
    return request.param, cirray.load(folder), SentenceTransformer(folder, device="cpu")


@pytest.fixture(scope="module")
def joint(folders):
    folder = str(folders / "vision_language")
    return cirray.load(folder), SentenceTransformer(folder, device="cpu")


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number, picture in enumerate(photographs()):
        picture.save(tmp_path / "photos" / f"p{number}.png")
    return tmp_path / "photos"


def test_texts_and_pictures_are_encoded_as_queries_and_documents_by_the_library(both):
    _, model, theirs = both
    wanted = unit(theirs.encode_query([{"text": words} for words in TEXTS]))
    assert np.abs(model.texts(TEXTS) - wanted).max() < CLOSE < np.abs(model.texts(TEXTS) - wanted[::-1]).max()
    documents, found = unit(theirs.encode_document(photographs())), model.images(photographs())[:, 0]
    assert np.abs(found - documents).max() < 1e-3  # rounded to fp16 as stored features are
    seen = model.vision(model._pixels(photographs()))[:, 0].numpy()
    assert np.abs(unit(seen) - documents).max() < CLOSE < np.abs(unit(seen) - documents[::-1]).max()


def test_each_model_composes_in_its_own_way(both):
    kind, model, _ = both
    reads_both = kind == "vision_language"
    assert model.composition.name == ("joint" if reads_both else "sum")
    assert ("joint" in model.composition.choices) is reads_both and "slerp" in model.composition.choices


def test_a_joint_query_is_the_library_s_encoding_of_picture_and_text_with_its_prompt(joint):
    model, theirs = joint
    inputs = [{"image": picture, "text": words} for picture, words in zip(photographs(), TEXTS, strict=True)]
    wanted, found = unit(theirs.encode_query(inputs)), model.queries(photographs(), TEXTS)
    assert np.abs(found - wanted).max() < CLOSE
    assert np.abs(found - unit(theirs.encode_document(inputs))).max() > 100 * CLOSE
    assert np.abs(found - model.queries(photographs(), TEXTS[::-1])).max() > 100 * CLOSE


def test_a_joint_model_also_sums_and_the_weight_moves_the_sum_alone(joint, folders):
    model, _ = joint
    folder = str(folders / "vision_language")
    summed = cirray.load(folder, composition="sum")
    wanted = unit(summed.images(photographs())[:, 0] + summed.texts(TEXTS))
    assert np.abs(summed.queries(photographs(), TEXTS) - wanted).max() < CLOSE
    with pytest.raises(ConfigError, match="weight=0.3 has no effect on the composition 'joint'; name composition=sum"):
        cirray.load(folder, weight=0.3)
    with pytest.raises(ConfigError, match="Only a model that reads picture and text together composes by 'joint'"):
        cirray.load(str(folders / "clip_module"), composition="joint")


def test_a_folder_is_indexed_once_and_searched_by_picture_and_text_each_alone_and_by_id(both, photos, tmp_path):
    _, model, theirs = both
    gallery = model.index(photos, out=str(tmp_path / "index"), root=str(tmp_path / "root"))
    assert gallery.engine.encoder.digest == model.digest and gallery.engine.vision.digest == model.vision.digest
    assert [row.id for row in gallery.search(photographs()[1])][0] == "p1"
    by_file, by_id = (gallery.search(given, TEXTS[0]) for given in (str(photos / "p0.png"), "p0"))
    scores = {row.id: row.score for row in by_file}
    assert all(abs(scores[row.id] - row.score) < 2e-3 for row in by_id) and len(by_id) == 2
    gallery.engine.probe()
    shutil.rmtree(photos)
    assert len(gallery.search("p0", TEXTS[0])) == 2  # by the kept thumbnail
    wanted = unit(theirs.encode_query([{"text": TEXTS[0]}])) @ unit(theirs.encode_document(photographs())).T
    assert [row.id for row in gallery.search(text=TEXTS[0])] == [f"p{at}" for at in np.argsort(-wanted[0])]


def test_a_checkpoint_keeps_the_published_files_once_and_another_release_s_version_is_the_same_model(folders, tmp_path):
    folder = tmp_path / "resaved"
    shutil.copytree(folders / "vision_language", folder)
    settings = folder / "config_sentence_transformers.json"
    tree = json.loads(settings.read_text())
    settings.write_text(json.dumps(tree | {"__version__": {"sentence_transformers": "7.0.0"}}))
    model, other = cirray.load(str(folders / "vision_language")), cirray.load(str(folder))
    assert (model.digest, model.vision.digest) == (other.digest, other.vision.digest)
    settings.write_text(json.dumps(tree | {"prompts": {"query": "Something else."}}))
    assert cirray.load(str(folder)).digest != model.digest
    model.encoder.save(tmp_path / "saved")
    model.vision.save(tmp_path / "saved" / "vision")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "saved").rglob("*.safetensors")}
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 1000 and len(sizes) == 1


def test_threads_that_ask_at_once_get_what_one_gets(joint):
    model, _ = joint
    wanted = model.queries(photographs(), TEXTS)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: model.queries(photographs(), TEXTS), range(12)))
    assert all(np.abs(vectors - wanted).max() < CLOSE for vectors in found)


def test_tower_and_text_encoder_share_one_network(both):
    _, model, _ = both
    assert model.vision.network is model.encoder.text_encoder.network


def test_a_hub_id_is_found_in_the_hub_s_cache(folders, tmp_path, monkeypatch, photos):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    published.put_in_hub_cache(tmp_path / "cache", "some/clip", folders / "clip_module")
    run = {"model": "some/clip", "images": str(photos), "out": str(tmp_path / "index"), "root": str(tmp_path / "root")}
    assert run_index(validate(IndexRun, run)).counts["images"] == len(SIZES)


def test_what_cannot_be_searched_with_is_one_sentence(folders, tmp_path, monkeypatch):
    embedders.texts_alone(tmp_path / "texts")
    with pytest.raises(ConfigError, match="reads text, and no image. Give one that reads pictures and texts"):
        cirray.load(str(tmp_path / "texts"))
    shutil.copytree(folders / "clip_module", tmp_path / "own")
    modules = json.loads((tmp_path / "own" / "modules.json").read_text())
    (tmp_path / "own" / "custom_st.py").write_text("raise SystemExit('this ran')\n")
    (tmp_path / "own" / "modules.json").write_text(json.dumps([modules[0] | {"type": "custom_st.Transformer"}]))
    with pytest.raises(ArtifactError, match="code of its own .custom_st.Transformer in its modules.json., which is ne"):
        cirray.load(str(tmp_path / "own"))
    (tmp_path / "own" / "modules.json").write_text("{")
    with pytest.raises(ArtifactError, match="is no list of modules"):
        cirray.load(str(tmp_path / "own"))
    monkeypatch.setattr("cirray.core.extras.find_spec", lambda name: None)
    copy = shutil.copytree(folders / "clip_module", tmp_path / "new")
    with pytest.raises(ConfigError, match=r"needs the library sentence_tr.*pip install 'cirray\[embedders\]'"):
        cirray.load(str(copy))
