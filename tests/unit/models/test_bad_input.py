"""Files that are damaged, packed, or of another size: one sentence with what to do, from every loader."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cirray.core.errors import ArtifactError, DataError
from cirray.data.config import TransformConfig
from cirray.generators.config import GeneratorConfig, LoraConfig, ReaderConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.store import load_model, save_generator
from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig, VisionTowerConfig
from cirray.models.retriever_files import load_retriever
from cirray.models.text import build_tokenizer, load_tokenizer
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.hf_blip2 import PREPROCESSOR, build_vision_tower, load_vision_tower
from cirray.models.towers.language import build_language_model, build_word_tokenizer, load_language_model

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
    with pytest.raises(ArtifactError, match="adapter_model.safetensors is missing or truncated"):
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
