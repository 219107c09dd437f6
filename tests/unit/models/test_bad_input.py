"""Files that are damaged, packed, or of another size: one sentence with what to do, from every loader."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.data.config import TransformConfig
from cirray.generators.captioners.base import CaptionerSetup
from cirray.generators.captioners.config import HfConfig
from cirray.generators.captioners.hf import HfCaptioner
from cirray.generators.config import GeneratorConfig, LoraConfig, ReaderConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.store import load_model, save_generator
from cirray.models.composed import build_retriever
from cirray.models.config import DualEncoderConfig, QFormerConfig, RetrieverConfig, VisionTowerConfig
from cirray.models.dual import build_dual
from cirray.models.retriever_files import load_retriever
from cirray.models.sources import hub
from cirray.models.text import build_tokenizer, load_tokenizer
from cirray.models.towers import hf_clip
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.hf_blip2 import build_vision_tower, load_vision_tower
from cirray.models.towers.language import build_language_model, build_word_tokenizer, load_language_model
from cirray.models.towers.preprocessors import PREPROCESSOR

SIZES = {"width": 16, "layers": 1, "heads": 2, "queries": 2, "intermediate": 16}


def write_tower(folder):
    sizes = VisionTowerConfig(image_size=16, patch_size=8, width=8, layers=1, heads=2, intermediate=16)
    build_vision_tower(sizes, TransformConfig(size=16)).save(folder)


def language():
    sizes = LanguageModelConfig(width=16, layers=1, heads=2, intermediate=16, positions=64)
    return build_language_model(sizes, build_word_tokenizer(["what change turns one image into the other"]))


def write_language(folder):
    language().save(folder)


def write_retriever(folder):
    config = RetrieverConfig(qformer=QFormerConfig(**SIZES), embed_dim=8)
    build_retriever(config, build_tokenizer(["make it red"]), 8).save(folder)


def write_generator(folder, tuning="frozen"):
    config = GeneratorConfig(qformer=ReaderConfig(**SIZES), tuning=tuning, lora=LoraConfig(rank=2))
    save_generator(ModificationTextModel(config, language(), 8), folder)


LOADERS = {
    "tower": (write_tower, load_vision_tower, "model.safetensors"),
    "language model": (write_language, load_language_model, "model.safetensors"),
    "retriever": (write_retriever, load_retriever, "model.safetensors"),
    "generator": (write_generator, load_model, "model.safetensors"),
    "generator's language model": (write_generator, load_model, "lm/model.safetensors"),
}


@pytest.fixture(params=LOADERS)
def stored(request, tmp_path):
    write, load, name = LOADERS[request.param]
    write(tmp_path)
    load(tmp_path)
    return load, tmp_path, tmp_path / name


@pytest.mark.parametrize("kept", [0.7, 0.001])
def test_truncated_safetensors_are_refused(stored, kept):
    load, folder, path = stored
    data = path.read_bytes()
    path.write_bytes(data[: max(int(len(data) * kept), 4)])
    with pytest.raises(ArtifactError, match="truncated|no readable retriever|could be read") as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_packed_weights_are_refused_instead_of_being_read_as_numbers(stored, dtype):
    load, folder, path = stored
    tensors = load_file(str(path))
    name = max((name for name in tensors if tensors[name].ndim == 2), key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, str(path), metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="float32, float16 and bfloat16 are accepted"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bits_are_read(stored, dtype):
    load, folder, path = stored
    tensors = {name: value.to(dtype) for name, value in load_file(str(path)).items()}
    save_file(tensors, str(path), metadata={"format": "pt"})
    module = load(folder)
    module = module if isinstance(module, torch.nn.Module) else module.model
    assert {weight.dtype for weight in module.parameters()} == {torch.float32}


def test_a_truncated_adapter_and_weights_of_other_sizes_are_refused(tmp_path):
    write_generator(tmp_path, "lora")
    adapter = tmp_path / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="adapter_model.safetensors' is a safetensors file cut off"):
        load_model(tmp_path)
    write_generator(tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["patch_width"] = 12
    (tmp_path / "config.json").write_text(json.dumps(description))
    with pytest.raises(ArtifactError, match="do not fit its configuration: .*size mismatch"):
        load_model(tmp_path)


def test_image_sizes_that_the_position_table_does_not_take_are_refused(tmp_path):
    write_tower(tmp_path)
    tower = load_vision_tower(tmp_path)
    with pytest.raises(DataError, match="24 x 16 px, the tower's position table is for 16 x 16"):
        tower(torch.zeros(1, 24, 16, 3, dtype=torch.uint8))
    with pytest.raises(ArtifactError, match="Set vision.image_size and transform.size to one value"):
        build_vision_tower(VisionTowerConfig(image_size=32, patch_size=8), TransformConfig(size=16))
    preprocessor = json.loads((tmp_path / PREPROCESSOR).read_text())
    preprocessor["cirray_transform"]["size"] = 24
    (tmp_path / PREPROCESSOR).write_text(json.dumps(preprocessor))
    with pytest.raises(ArtifactError, match="takes images of 16 px .*makes 24 px. Correct the preprocessor's size"):
        load_vision_tower(tmp_path)


def test_tokenizers_without_a_pad_or_an_end_token_are_refused_or_have_a_stand_in(tmp_path):
    words = build_tokenizer(["make it red"])
    words.pad_token = None
    words.save_pretrained(str(tmp_path / "words"))
    with pytest.raises(ArtifactError, match="pad"):
        load_tokenizer(tmp_path / "words")
    made = language()
    made.tokenizer.pad_token = None
    assert made.pad_id == made.end_id
    made.tokenizer.eos_token = None
    with pytest.raises(ArtifactError, match="no end token"):
        _ = made.end_id


@pytest.mark.parametrize("what", ["tower", "language model"])
def test_a_configuration_that_contradicts_itself_is_refused(what, tmp_path):
    write, load, _ = LOADERS[what]
    write(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_attention_heads"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="could be read from") as caught:
        load(tmp_path)
    assert "3" in str(caught.value)


HUB = "somebody/some-model"
FROM_THE_HUB = {
    "vision tower": lambda: load_vision_tower(HUB),
    "language model": lambda: load_language_model(HUB),
    "tokenizer": lambda: load_tokenizer(HUB),
    "CLIP model": lambda: hf_clip.HfClipText.load(HUB),
    "image-to-text model": lambda: HfCaptioner(HfConfig(source=HUB), CaptionerSetup()),
}


@pytest.mark.parametrize("what", FROM_THE_HUB)
def test_a_hub_id_without_network_is_one_sentence_that_says_which_files_to_put_where(what, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wanted = f"No {what} could be read from '{HUB}': it is no folder here, and the hub does not answer.*Put .*json"
    with pytest.raises(ArtifactError, match=f"{wanted}.* into one folder and name that folder, or run once with"):
        FROM_THE_HUB[what]()


@pytest.mark.parametrize("name", ["somebody/some-model", "an-old-name"])
def test_the_hub_is_asked_once_and_then_only_its_cache_until_it_may_be_back(name, monkeypatch):
    """Its library would ask for every file again and again, for minutes."""
    asked, clock = [], [100.0]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_NETWORK", hub._Network())
    monkeypatch.setattr(hub.time, "monotonic", lambda: clock[0])
    session = SimpleNamespace(head=lambda *given, **named: asked.append(1) or _raise(OSError("no network")))
    monkeypatch.setattr(hub, "get_session", lambda: session)
    for _ in range(2):
        with pytest.raises(ArtifactError, match="the hub does not answer"):
            load_vision_tower(name)
        assert asked == [1]
    clock[0] += 61
    session.head = lambda *given, **named: asked.append(2)
    hub.at_home(name)
    assert asked == [1, 2] and not hub.constants.HF_HUB_OFFLINE


def _raise(error):
    raise error


def test_a_dual_encoder_from_the_hub_without_network_names_the_files_too(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="the hub does not answer.*. Put config.json, model.safetensors"):
        build_dual(DualEncoderConfig(source=HUB), ["make it red"], 8)


def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id(tmp_path):
    with pytest.raises(ArtifactError, match="it is no folder here. Put config.json"):
        load_language_model(tmp_path / "nowhere")


def test_weights_below_the_home_folder_are_found_by_their_short_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tower(tmp_path / "tower")
    write_language(tmp_path / "lm")
    build_tokenizer(["make it red"]).save_pretrained(str(tmp_path / "words"))
    assert load_vision_tower("~/tower").width == 8 and load_language_model("~/lm").width == 16
    assert load_tokenizer("~/words").pad_token_id == 0
    assert load_language_model("~/lm").source == "~/lm"  # what is written into artifacts names nobody's home


POINTER = b"version https://git-lfs.github.com/spec/v1\n"


@pytest.mark.parametrize(
    "content, words",
    [(POINTER, "a Git LFS pointer"), (b"<html></html>", "a web page"), (b"", "empty"), (b"{}", "JSON text")],
)
def test_another_file_in_place_of_weights_is_called_what_it_is(stored, content, words):
    load, folder, path = stored
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"is {words}"):
        load(folder)


def test_weights_that_are_no_numbers_are_refused_by_every_loader(stored):
    load, folder, path = stored
    tensors = load_file(str(path))
    name = max(tensors)
    tensors[name].view(-1)[0] = float("nan")
    save_file(tensors, str(path), metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="values of the tensor .* are NaN or infinite"):
        load(folder)
