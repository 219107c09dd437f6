"""Bytes that a plan counts, against bytes that lie there."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from cirray.core.storage import join
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import decode
from cirray.models.composed import QFormerRetriever
from cirray.models.config import QFormerConfig, RetrieverConfig
from cirray.models.outlines import weightless
from cirray.models.text import build_tokenizer
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.language import build_language_model, build_word_tokenizer
from cirray.pipelines.planning.memory import (
    Weights,
    cache_bytes,
    count_weights,
    feature_bytes,
    training_states,
)
from cirray.training.config import LoopConfig
from cirray.training.deepspeed_engine import DeepSpeedEngine
from cirray.training.torch_engine import TorchEngine

PIPELINE = runpy.run_path(str(Path(__file__).parents[3] / "fixtures" / "tiny_pipeline.py"))
SIZES = QFormerConfig(width=16, layers=2, heads=2, queries=3, intermediate=32)


def model():
    words = build_tokenizer(["red blue green large small round"])
    return QFormerRetriever(RetrieverConfig(qformer=SIZES, embed_dim=8), words, 6)


def held(tensors):
    """Bytes of distinct storages."""
    storages = [item.untyped_storage() for item in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_weights_are_counted_as_the_real_model_has_them():
    real = model()
    with weightless():
        assert count_weights(model()) == count_weights(real)
    assert count_weights(real).trained == sum(item.numel() for item in real.parameters())
    real.qformer.requires_grad_(False)
    counted = count_weights(real)
    assert counted.frozen == sum(item.numel() for item in real.qformer.parameters()) > 0
    assert counted.trained_bytes == 4 * counted.trained


def test_weights_gradients_and_optimiser_of_the_torch_engine_are_exact():
    network = model()
    network.text_projection.requires_grad_(False)
    config = LoopConfig(engine="torch")
    engine = TorchEngine(network, config)
    trained = [item for item in network.parameters() if item.requires_grad]
    for item in trained:
        item.grad = torch.ones_like(item)
    said = training_states(count_weights(network), config, 1)
    assert said.gradients == held([item.grad for item in trained])
    engine.step()
    assert said.weights == held(network.parameters())
    states = [value for state in engine._optimizer.state.values() for value in state.values()]
    assert said.optimizer == held(states)
    assert said.total == said.weights + said.gradients + said.optimizer


def test_bf16_weights_of_the_torch_engine_are_counted_with_their_fp32_copies():
    network, config = model(), LoopConfig(precision="bf16_weights")
    engine = TorchEngine(network, config)
    engine.backward(sum(item.float().square().sum() for item in network.parameters()))
    engine.step()
    said = training_states(count_weights(network), config, 1)
    assert said.weights == held(network.parameters())
    states = [value for state in engine._optimizer.state.values() for value in state.values()]
    assert said.optimizer == held([*states, *engine._updated])


@pytest.mark.parametrize("precision", ["fp32", "bf16_weights"])
@pytest.mark.parametrize("stage", [1, 2])
def test_what_deepspeed_shares_is_what_it_holds_on_one_rank(stage, precision):
    network = model()
    config = LoopConfig(engine="deepspeed", zero_stage=stage, precision=precision)
    engine = DeepSpeedEngine(network, config)
    engine.backward(sum(item.square().sum() for item in network.parameters()))
    engine.step()
    inner = engine._engine.optimizer
    masters = held(inner.single_partition_of_fp32_groups)
    moments = held(
        value for state in inner.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    )
    said = training_states(count_weights(network), config, 1)
    assert said.optimizer == pytest.approx(masters + moments, rel=0.02)
    assert said.weights == pytest.approx(held(network.parameters()), rel=0.02)


def test_stages_share_more_and_more_as_the_zero_paper_says():
    weights = Weights(trained=1_000_000, frozen=0, trained_bytes=4_000_000, frozen_bytes=0, tensors=1)
    world = 8

    def said(stage, **more):
        return training_states(weights, LoopConfig(engine="deepspeed", zero_stage=stage, **more), world)

    zero, one, two, three = (said(stage) for stage in range(4))
    assert (zero.weights, zero.gradients, zero.optimizer) == (4_000_000, 4_000_000, 8_000_004)
    assert (one.weights, one.gradients, one.optimizer) == (4_000_000, 4_000_000, 1_500_001)
    assert two.optimizer == one.optimizer and two.gradients - 200_000_000 == 500_000
    assert three.weights == 500_000
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    away = said(3, deepspeed=offload)
    assert away.optimizer == 0 and away.host == three.optimizer


@pytest.mark.parametrize("beams", [1, 3])
def test_the_cache_of_decoding_is_exact(beams, monkeypatch):
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer([f"w{number}" for number in range(30)])
    language = build_language_model(LanguageModelConfig(width=32, layers=3, heads=4, intermediate=64), tokenizer)
    from cirray.generators import decoding as module

    caches = []
    fresh = module._new_cache
    monkeypatch.setattr(module, "_new_cache", lambda lm: caches.append(fresh(lm)) or caches[-1])
    config = DecodingConfig(beams=beams, max_new_tokens=7, min_new_tokens=7, keep_unfinished=True)
    decode(language.model.eval(), torch.randn(5, 11, 32), config, language.end_id)
    layers = caches[0].layers
    true = held([tensor for layer in layers for tensor in (layer.keys, layer.values)])
    assert cache_bytes(language.model.config, 5 * beams, 11, 6, 4) == true
    assert cache_bytes(language.model.config, 5 * beams, 11, 7, 4) != true


@pytest.mark.parametrize("images", [16, 21])
def test_features_on_disk_are_exact(images, tmp_path):
    vectors = PIPELINE["random_vectors"](images, shape=(5, 12))
    uri = PIPELINE["write_features"](tmp_path / "f", vectors, rows=8)
    files = list(Path(join(uri, "shards")).glob("*.npy"))
    assert feature_bytes(images, 5, 12, 8) == sum(path.stat().st_size for path in files)
    assert sum(np.load(path).nbytes for path in files) == images * 5 * 12 * 2
