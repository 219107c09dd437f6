"""Files of CLIP4Cir, SPN4CIR, SEARLE, LinCIR and Pic2Word, against twins written out on their tensor names."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from cirray.core.artifacts import read_manifest
from cirray.core.config import validate
from cirray.core.errors import ArtifactError, CirrayError, ConfigError
from cirray.image_text import load_models
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.words.config import WordMapConfig
from cirray.models.words.word_map import build_word_map
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.evaluation.evaluate import run_evaluate
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index
from cirray.pipelines.weights.config import ConvertRun
from cirray.pipelines.weights.convert import run_convert
from cirray.search_engine import SearchEngine

FIXTURES = Path(__file__).parents[2] / "fixtures"
theirs = SimpleNamespace(**runpy.run_path(str(FIXTURES / "openai_layout.py")))
small = SimpleNamespace(**runpy.run_path(str(FIXTURES / "small_clip.py")))

TEXTS = ["is blue and has no sleeves", "remove the dog!", "more like a 1950s dress"]
CLOSE = 2e-5
DOLLAR, STAR = 259, 265
"""Ids of `$` and `*` in CLIP's vocabulary, which SEARLE and Pic2Word put their vectors over."""


def saved(path, tree):
    torch.save(tree, str(path))
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("clip")


@pytest.fixture(scope="module")
def tuned(root):
    """CLIP4Cir's first stage, as `save_model` writes it: a ViT and a ResNet, in float32 and in OpenAI's mixed types."""
    made = {}
    for kind in ("vit", "resnet"):
        for half in (False, True):
            state = theirs.clip(kind, half=half)
            made[kind, half] = state, saved(root / f"tuned-{kind}-{half}.pt", {"epoch": 3, "CLIP": state})
    return made


def converted(out, **fields):
    run_convert(validate(ConvertRun, {"to": "checkpoint", "out": str(out), **fields}))
    return load_models(str(out))[:2]


def raw_image(state, tower, images, **options):
    pixels = ((images.float() - tower.mean_C) / tower.std_C).permute(0, 3, 1, 2)
    return theirs.encode_image(state, pixels, **options)


def apart(ours, other):
    return float((ours - other).abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_tuned_clip_of_clip4cir_composes_as_its_authors_code(tuned, tmp_path, kind, half):
    state, path = tuned[kind, half]
    retriever, tower = converted(tmp_path / "sum", source=path)
    assert (tower.transform.mode, tower.transform.ratio, tower.transform.size) == (
        "target_pad",
        1.25,
        theirs.size(kind),
    )
    images, text = small.images(size=theirs.size(kind)), retriever.tokenize(TEXTS)
    image, said = raw_image(state, tower, images), theirs.encode_text(state, text.ids_BT)
    seen = tower(images)
    assert apart(seen[:, 0], image) < CLOSE * image.abs().max()
    query = retriever.compose(retriever.encode_reference(seen), text)
    assert apart(query, functional.normalize(image + said, dim=-1)) < CLOSE
    assert apart(retriever.encode_gallery(seen)[:, 0], functional.normalize(image, dim=-1)) < CLOSE
    other = theirs.encode_text(state, text.ids_BT, act=functional.gelu)
    assert apart(query, functional.normalize(image + other, dim=-1)) > 20 * CLOSE, "the activation is told apart"


@torch.inference_mode()
def test_a_combiner_over_its_tuned_clip_composes_as_its_authors_code(tuned, tmp_path):
    (state, path), head = tuned["resnet", False], theirs.combiner()
    source = saved(tmp_path / "combiner.pt", {"epoch": 9, "Combiner": head})
    retriever, tower = converted(tmp_path / "made", source=source, clip=path)
    images, text = small.images(size=64), retriever.tokenize(TEXTS)
    image, said = raw_image(state, tower, images), theirs.encode_text(state, text.ids_BT)
    query = retriever.compose(retriever.encode_reference(tower(images)), text)
    assert apart(query, theirs.combine(head, image, said)) < CLOSE
    assert apart(query, theirs.combine(head, said, image)) > 100 * CLOSE, "a swapped pair is another query"
    assert retriever.config.fusion.settings.projection_factor == 4 and not retriever.config.train_text
    manifest = read_manifest(str(tmp_path / "made"))
    assert manifest.extra["format"] == "clip4cir" and manifest.counts["tensors"] == 12


FILES = {
    "searle": lambda state: {"epoch": 100, "Phi": theirs.phi(), "optimizer": {"state": {}}, "hyper": {"a": [1]}},
    "lincir": lambda state: {"epoch": 20, "Phi": theirs.phi()},
    "pic2word": lambda state: {
        "epoch": 30, "name": "pic2word", "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}},
        "state_dict": {f"module.{name}": value for name, value in state.items()},
        "state_dict_img2text": {f"module.{name}": value for name, value in theirs.img2text().items()},
    },
}  # fmt: skip
PROMPTS = {"searle": "a photo of $ that {}", "lincir": "a photo of $ that {}", "pic2word": "a photo of * , {}"}
MODES = {"searle": "target_pad", "lincir": "center_crop", "pic2word": "center_crop"}


@torch.inference_mode()
@pytest.mark.parametrize("kind", FILES)
def test_a_map_to_pseudo_words_composes_as_its_authors_code(tuned, tmp_path, kind):
    """SEARLE and LinCIR with the CLIP named; Pic2Word's own file holds it."""
    from open_clip import tokenize

    state, path = tuned["vit", False]
    tree = FILES[kind](state)
    named = {} if kind == "pic2word" else {"clip": path}
    source = saved(tmp_path / "map.pt", tree)
    retriever, tower = converted(tmp_path / "made", source=source, format=kind, **named)
    assert tower.transform.mode == MODES[kind]
    images = small.images(size=theirs.size("vit"))
    image, slot = raw_image(state, tower, images), STAR if kind == "pic2word" else DOLLAR
    ids = tokenize([PROMPTS[kind].format(text) for text in TEXTS])
    assert ((ids == slot).sum(1) == 1).all()
    found = theirs.img2text() if kind == "pic2word" else theirs.phi()
    pseudo = theirs.invert(found, image)
    wanted = functional.normalize(theirs.encode_text(state, ids, pseudo=pseudo, slot=slot), dim=-1)
    query = retriever.compose(retriever.encode_reference(tower(images)), retriever.tokenize(TEXTS))
    assert apart(query, wanted) < CLOSE
    normed = theirs.invert(found, functional.normalize(image, dim=-1))
    other = functional.normalize(theirs.encode_text(state, ids, pseudo=normed, slot=slot), dim=-1)
    assert apart(query, other) > 20 * CLOSE, "phi reads the embedding as it is"


@torch.inference_mode()
def test_a_map_stands_on_a_clip_of_hugging_face_too(tmp_path):
    """LinCIR's own code reads the CLIP from there. The twin: transformers' whole model with the vector in its table."""
    model = small.hf_model()
    folder = small.save_hf(model, tmp_path / "hf")
    draw = theirs.Draw(4)
    state = theirs.affine(draw, "layers.0", 48, small.EMBED) | theirs.affine(draw, "layers.3", 48, 48)
    state |= theirs.affine(draw, "layers.6", 16, 48)
    source = saved(tmp_path / "phi.pt", {"epoch": 1, "Phi": state})
    retriever, tower = converted(tmp_path / "made", source=source, format="lincir", clip=folder)
    seen = tower(small.images())
    assert apart(retriever.encode_reference(seen)[:, 0], theirs.invert(state, seen[:, 0])) < 1e-5


def test_what_a_file_is_is_told_by_its_tensors_under_any_wrapper(tuned, tmp_path):
    state, _ = tuned["vit", False]
    spn = {"epoch": 4, "state_dict": {f"clip.{name}": value for name, value in state.items()}}
    openai = {**state, "input_resolution": torch.tensor(16), "context_length": torch.tensor(77)}
    save_file({name: value.contiguous() for name, value in state.items()}, str(tmp_path / "bare.safetensors"))
    places = {str(tmp_path / "bare.safetensors"): "clip4cir"}
    for number, tree in enumerate(
        (spn, openai, {"state_dict": {f"_orig_mod.module.clip.{n}": v for n, v in state.items()}})
    ):
        places[saved(tmp_path / f"{number}.pt", tree)] = "auto"
    made = [
        run_convert(ConvertRun(source=place, format=form, to="checkpoint", out=f"{place}-made"))
        for place, form in places.items()
    ]
    assert {item.extra["format"] for item in made} == {"clip4cir"}
    assert len({item.extra["encoder_digest"] for item in made}) == 1


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])
def test_a_tuned_clip_becomes_a_folder_that_is_a_source_and_comes_back_bit_for_bit(tuned, tmp_path, half):
    state, path = tuned["vit", half]
    folder = str(tmp_path / "weights")
    run_convert(ConvertRun(source=path, out=folder))
    tower = load_vision_tower(folder)
    retriever = build_dual(DualEncoderConfig(source=folder), [], tower.width)
    assert retriever.config.embed_dim == theirs.EMBED and tower.image_size == theirs.size("vit")
    run_convert(ConvertRun(source=folder, to="original", out=str(tmp_path / "back")))
    back = torch.load(tmp_path / "back" / "weights.pt", weights_only=True)
    assert back["epoch"] == 3 and set(back) == {"epoch", "CLIP"} and set(back["CLIP"]) == set(state)
    for name, value in state.items():
        assert torch.equal(back["CLIP"][name], value) and back["CLIP"][name].dtype == value.dtype
    made, _ = converted(tmp_path / "made", source=folder)
    assert made.config.fusion.kind == "sum"


def test_checkpoints_are_written_back_as_their_authors_files(tuned, tmp_path):
    state, path = tuned["resnet", False]
    head, maps = theirs.combiner(), {"searle": theirs.phi(), "pic2word": theirs.img2text()}
    made = {"combiner": (saved(tmp_path / "c.pt", {"Combiner": head}), path, "auto")}
    vit = tuned["vit", False][1]
    for kind, found in maps.items():
        key = "Phi" if kind == "searle" else "state_dict_img2text"
        made[kind] = (saved(tmp_path / f"{kind}.pt", {key: found}), vit, kind)
    for kind, (source, clip, form) in made.items():
        converted(tmp_path / kind, source=source, clip=clip, format=form)
        run_convert(ConvertRun(source=str(tmp_path / kind), to="original", out=str(tmp_path / f"{kind}-back")))
    written = {
        ("combiner", "clip.pt", "CLIP"): state, ("combiner", "combiner.pt", "Combiner"): head,
        ("searle", "phi.pt", "Phi"): maps["searle"], ("pic2word", "phi.pt", "state_dict_img2text"): maps["pic2word"],
    }  # fmt: skip
    for (kind, name, key), wanted in written.items():
        found = torch.load(tmp_path / f"{kind}-back" / name, weights_only=True)[key]
        assert set(found) == set(wanted) and all(torch.equal(found[part], wanted[part]) for part in wanted), name


def test_a_tuned_file_is_a_source_wherever_a_clip_is_named(tuned, tmp_path):
    state, path = tuned["resnet", False]
    tower = load_vision_tower(path)
    assert tower.transform.mode == "center_crop" and tower.width == theirs.EMBED
    dual = build_dual(DualEncoderConfig(source=path, fusion="combiner"), [], tower.width)
    words = build_word_map(WordMapConfig(source=path, injection={"layers": 0}), tower.width)
    for text in (dual.text_encoder, words.text_encoder):
        assert torch.equal(text.model.positional_embedding, state["positional_embedding"])


def refused(match, run=None, **fields):
    with pytest.raises(CirrayError, match=match) as caught:
        run() if run else run_convert(validate(ConvertRun, {"to": "checkpoint", **fields}))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_source_says_what_to_do(tuned, tmp_path):
    state, path = tuned["vit", False]
    bare = saved(tmp_path / "bare.pt", state)
    head = saved(tmp_path / "combiner.pt", {"Combiner": theirs.combiner()})

    def dual(source):
        return lambda: build_dual(DualEncoderConfig(source=source), [], theirs.EMBED)

    refused("bare state dict, which does not tell its activation. Name .*open_clip:NAME=FILE", dual(bare))
    refused(r"holds no CLIP in OpenAI's layout \(found: Combiner\)", dual(head))
    refused("names an architecture without QuickGELU.*Give the file alone", dual(f"open_clip:ViT-B-32={path}"))
    with ZipFile(tmp_path / "openai.pt", "w") as archive:
        archive.writestr("ViT-B-32/data.pkl", b"")
        archive.writestr("ViT-B-32/constants.pkl", b"")
        archive.writestr("ViT-B-32/code/__torch__.py", b"")
    refused("a TorchScript archive .*torch.jit.load", dual(str(tmp_path / "openai.pt")))
    refused("a TorchScript archive", source=str(tmp_path / "openai.pt"), out=str(tmp_path / "out"))
    (tmp_path / "page.pt").write_bytes(b"<html>")
    refused("page.pt", dual(str(tmp_path / "page.pt")))


def test_what_convert_cannot_know_it_asks_for(tuned, tmp_path):
    state, path = tuned["vit", False]
    out = str(tmp_path / "out")
    phi = saved(tmp_path / "phi.pt", {"epoch": 1, "Phi": theirs.phi()})
    head = saved(tmp_path / "head.pt", {"Combiner": theirs.combiner()})
    refused("SEARLE and LinCIR look alike; name format=searle or format=lincir", source=phi, clip=path, out=out)
    refused("holds a Phi and no CLIP. Name the CLIP", source=phi, format="searle", out=out)
    refused("holds a Combiner and no CLIP", source=head, out=out)
    refused("it holds a Phi, where a state_dict_img2text is needed", source=phi, format="pic2word", clip=path, out=out)
    refused("bare CLIP.*name format=clip4cir", source=saved(tmp_path / "bare.pt", state), out=out)
    refused("holds a Combiner, which the weights layout", source=head, to="weights", out=out)
    refused("vision has no effect on files of clip4cir", source=path, vision="x", out=out)
    refused(
        "clip '/no/such' is no encoder of .*: it is no folder here|There is no vision tower at '/no/such'",
        source=head,
        clip="/no/such",
        out=out,
    )
    wide = saved(tmp_path / "wide.pt", {"Combiner": theirs.combiner()})
    hf = small.save_hf(small.hf_model(), tmp_path / "hf")
    refused("is for vectors of width 48, the CLIP of .* has 12", source=wide, clip=hf, out=out)
    broken = theirs.phi()
    del broken["layers.3.bias"]
    refused(
        "The Phi is not as published: missing layers.3.bias", format="searle", clip=path, out=out,
        source=saved(tmp_path / "broken.pt", {"Phi": broken}),
    )  # fmt: skip
    assert not Path(out).exists()
    with pytest.raises(ConfigError, match="clip has no effect with to=weights"):
        validate(ConvertRun, {"source": path, "clip": path})


def test_an_encoder_without_an_authors_layout_is_not_written_back(tmp_path):
    folder = small.save_hf(small.hf_model(), tmp_path / "hf")
    retriever = build_dual(DualEncoderConfig(source=folder, fusion="tirg"), [], small.EMBED)
    from cirray.pipelines.weights.convert_clip import write_retriever_back

    with pytest.raises(ArtifactError, match="has no authors' layout"):
        write_retriever_back(retriever, load_vision_tower(folder), tmp_path)


def test_a_converted_combiner_embeds_indexes_searches_and_evaluates(tuned, tmp_path):
    head = saved(tmp_path / "combiner.pt", {"epoch": 9, "Combiner": theirs.combiner()})
    checkpoint = str(tmp_path / "made")
    converted(checkpoint, source=head, clip=tuned["resnet", True][1])
    world = {"labelled_families": 0, "heldout_families": 0, "pool_families": 0, "gallery_references": 4}
    run_world(WorldRun.model_validate({"shapes": world, "out": str(tmp_path / "world")}))
    data = {"folder": {"root": str(tmp_path / "world")}}
    embed = {"data": data, "parts": ["gallery"], "tower": checkpoint, "out": str(tmp_path / "features")}
    run_embed(validate(EmbedRun, {**embed, "ray": {"enabled": False}}))
    common = {"data": data, "checkpoint": checkpoint, "features": [str(tmp_path / "features")]}
    run_index(validate(IndexRun, {**common, "index": "exact", "out": str(tmp_path / "index")}))
    retriever = SearchEngine.open(checkpoint, str(tmp_path / "index"))
    assert len(retriever.search("paint it blue", gallery_id=retriever.gallery.ids[0], k=3).ids) == 3
    manifest = run_evaluate(validate(EvaluateRun, {**common, "html": False, "out": str(tmp_path / "report")}))
    assert manifest.counts["queries"] == 32
