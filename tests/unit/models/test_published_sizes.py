"""The published sizes, built without memory (on the meta device) and counted."""

import pytest
import torch
from modes import eva_g, published_generator, published_retriever
from transformers import AutoModelForCausalLM, Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig

from cirray.data.config import TransformConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.models.composed import QFormerRetriever
from cirray.models.config import QFormerConfig
from cirray.models.qformer import QueryingTransformer, huggingface_config
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.models.towers.language import LanguageModel

BERT_WORDS = 30523
"""bert-base-uncased with LAVIS' [DEC]."""


class Words:
    """A tokenizer as far as its size goes."""

    pad_token_id, eos_token_id, chat_template = 0, 1, None

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [2] * add_special_tokens + [3]}

    def decode(self, ids, **options):
        return "a" * len(ids)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(build):
    with torch.device("meta"):
        module = build()
    assert all(parameter.is_meta for parameter in module.parameters())
    return module


def test_the_q_former_has_the_published_number_of_weights():
    module = on_meta(lambda: QueryingTransformer(QFormerConfig.blip2(), 1408, BERT_WORDS))
    # BERT-base, 6 cross-attentions on 1408-wide keys, a second feed-forward per layer, tables, queries, ln_vision.
    layer = 4 * (768 * 768 + 768) + 2 * 768 + 2 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)
    crossed = 2 * (768 * 768 + 768) + 2 * (1408 * 768 + 768) + 2 * 768
    tables = (BERT_WORDS + 512) * 768 + 2 * 768
    assert count(module) == 12 * layer + 6 * crossed + tables + 32 * 768 + 2 * 1408 == 185_687_552
    assert count(module) == pytest.approx(
        188e6, rel=0.02
    )  # the BLIP-2 paper rounds to 188M and says not what it counts


def test_the_sizes_are_transformers_own_defaults():
    ours, theirs = huggingface_config(QFormerConfig.blip2(), 1408, 30522).to_dict(), Blip2QFormerConfig().to_dict()
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_dropout_prob")
    names += ("cross_attention_frequency", "encoder_hidden_size", "max_position_embeddings", "initializer_range")
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    vision, eva = Blip2VisionConfig(), eva_g()
    assert (vision.hidden_size, vision.num_hidden_layers, vision.intermediate_size) == (1408, 39, 6144)
    assert (eva.width, eva.layers, eva.intermediate) == (1408, 39, 6144)
    assert (eva.heads, eva.patch_size, eva.image_size) == (vision.num_attention_heads, vision.patch_size, 224)


@pytest.mark.parametrize("mode", ["improved", "paper", "released_compat"])
def test_a_published_retriever_is_built_without_memory(mode):
    config = published_retriever(mode)
    retriever = on_meta(lambda: QFormerRetriever(config, Words(BERT_WORDS), 1408))
    assert config.embed_dim == 256 and config.text_length == 32 and config.qformer.queries == 32
    patches = torch.empty(2, 257, 1408, device="meta")
    assert retriever.qformer.image(patches).shape == (2, 32, 768)
    assert retriever.vision_projection.out_features == retriever.text_projection.out_features == 256
    assert (config.temperature_clamp is None) == (mode != "improved")


def test_the_vision_tower_is_vit_g_of_a_billion_weights():
    tower = on_meta(lambda: build_vision_tower(eva_g(), TransformConfig(size=224)))
    assert (tower.num_tokens, tower.width, tower.image_size) == (257, 1408, 224)
    assert round(count(tower) / 1e6) == 986


def test_a_published_generator_stands_before_a_7b_language_model_without_memory():
    settings = LlamaConfig(
        vocab_size=32001, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )

    def build():
        model = AutoModelForCausalLM.from_config(settings)
        language = LanguageModel(model, Words(32001))
        return ModificationTextModel(published_generator(), language, 1408, Words(BERT_WORDS))

    generator = on_meta(build)
    assert generator.config.passes == ("reference", "target", "difference")
    trained = sum(weight.numel() for weight in generator.parameters() if weight.requires_grad)
    assert round(count(generator.lm) / 1e9, 1) == 6.7
    assert trained == count(generator.qformer) + 768 * 4096 + 4096
