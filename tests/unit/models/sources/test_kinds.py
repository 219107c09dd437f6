"""What a source is when it is not what was asked for: told truly, with what would be accepted."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from cirray.core.errors import ArtifactError, CirrayError
from cirray.models.config import DualEncoderConfig
from cirray.models.dual import build_dual
from cirray.models.towers.backbones import BACKBONES, titles
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.language import load_language_model

READERS = {
    "vision": load_vision_tower,
    "language": load_language_model,
    "texts": lambda source: build_dual(DualEncoderConfig(source=str(source)), ["a"], 8),
}
ADVICE = {
    "vision": "Give an image encoder of transformers .*DINOv2.*BLIP-2.*CLIP.*open_clip.*timm",
    "language": "Give a model that writes text.*T5",
    "texts": "Give CLIP in Hugging Face layout; or SigLIP",
}
SOURCES = {
    "nothing": ({}, "the folder has no config.json .it is empty."),
    "weights alone": ({"model.safetensors": None}, "the folder has no config.json .it holds model.safetensors."),
    "GGUF": (
        {"model-q4.gguf": "GGUF"},
        "a GGUF file .llama.cpp; .*dequantize=True.* converts it., which cannot be read here",
    ),
    "adapter": ({"adapter_config.json": "{}"}, "it holds a LoRA adapter, not a whole model"),
    "diffusers": ({"model_index.json": "{}"}, "it holds a diffusers pipeline"),
    "no type": ({"config.json": '{"hidden_size": 8}'}, "its config.json names no model_type"),
    "unknown type": ({"config.json": '{"model_type": "mine"}'}, "the model_type 'mine', which the installed"),
    "own code": (
        {
            "config.json": json.dumps(
                {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}
            )
        },
        "code of its own .auto_map in its JSON files., which is never run here",
    ),
    "detection": ({"config.json": '{"model_type": "yolos"}'}, "it is a 'yolos' of transformers, which finds objects"),
    "speech": ({"config.json": '{"model_type": "whisper"}'}, "it is a 'whisper' of transformers, which reads speech"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", SOURCES)
def test_a_folder_of_another_kind_is_called_what_it_is_with_what_would_be_accepted(kind, reader, tmp_path):
    files, words = SOURCES[kind]
    for name, text in files.items():
        if text is None:
            save_file({"weight": torch.zeros(2)}, str(tmp_path / name))
        else:
            (tmp_path / name).write_text(text)
    with pytest.raises(CirrayError, match=words) as caught:
        READERS[reader](tmp_path)
    told = str(caught.value)
    assert len(told.splitlines()) == 1 and len(told.replace(str(tmp_path), "")) < 640
    if kind != "own code":
        assert re.search(ADVICE[reader], told)


def test_text_models_and_image_models_are_told_apart(tmp_path):
    for family, reader, words in (
        ("bert", "vision", "it is a 'bert' of transformers, which reads text"),
        ("t5", "vision", "it is a 't5' of transformers, which reads text and writes text"),
        ("llama", "texts", "it is a 'llama' of transformers, which writes text"),
        ("dinov2", "texts", "it is a 'dinov2' of transformers, which reads images"),
        ("dinov2", "language", "it is a 'dinov2' of transformers, which reads images"),
        ("llava", "vision", "it is a 'llava' of transformers, which reads images and writes text"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        with pytest.raises(CirrayError, match=words):
            READERS[reader](tmp_path)


def test_an_encoder_that_writes_nothing_is_no_language_model(tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(str(tmp_path))
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(ArtifactError, match="tensors of a language model.*it is a 'bert' .* Give a model that writes"):
        load_language_model(tmp_path)


def test_every_backbone_says_what_a_person_may_name():
    assert all(BACKBONES.get(name).title for name in BACKBONES)
    assert titles(map(BACKBONES.get, BACKBONES)).count("; or ") == len(BACKBONES.names()) - 1
