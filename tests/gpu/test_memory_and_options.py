"""What a plan says against what an accelerator allocates, and options that must not change the losses there."""

import pytest
import torch

from cirray.models.composed import QFormerRetriever
from cirray.models.config import QFormerConfig, RetrieverConfig
from cirray.models.outlines import weightless
from cirray.models.text import build_tokenizer
from cirray.pipelines.planning.steps import Tokens, count_retriever, retrieval_batch
from cirray.training.config import TrainingConfig
from cirray.training.engine import autocast
from cirray.training.gather import NoGather
from cirray.training.objectives import retrieval_loss
from cirray.training.torch_engine import TorchEngine

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")]
TOKENS = Tokens(129, 512)


def retriever(checkpointing=False, dropout=0.1):
    sizes = QFormerConfig(width=256, layers=6, heads=4, queries=16, intermediate=1024, dropout=dropout)
    config = RetrieverConfig(qformer=sizes, embed_dim=128, gradient_checkpointing=checkpointing)
    return QFormerRetriever(config, build_tokenizer([f"w{number}" for number in range(2000)]), TOKENS.width)


def steps(count, checkpointing=False, dropout=0.1, **fields):
    """Losses of some steps on one batch, and the most bytes that were allocated in the last one."""
    torch.manual_seed(0)
    config = TrainingConfig(batch=128, objective="ptha", steps=20, **fields)
    engine = TorchEngine(retriever(checkpointing, dropout).to("cuda"), config)
    engine.module.train()
    batch, losses = retrieval_batch(engine.module, config, TOKENS, 128).to("cuda"), []
    for _ in range(count):
        torch.cuda.reset_peak_memory_stats()
        with autocast(engine.device, config):
            loss = retrieval_loss(engine.module, batch, config, NoGather()).total
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses, torch.cuda.max_memory_allocated(), config


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_plan_tells_the_allocated_memory_within_15_percent(checkpointing, precision):
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    _, peak, config = steps(3, checkpointing, precision=precision)
    with weightless():
        said = count_retriever(retriever(checkpointing), config, TOKENS).total
    assert said == pytest.approx(peak - before, rel=0.15)


def test_the_fused_optimiser_is_chosen_and_makes_the_same_steps():
    model = retriever().cuda()
    assert TorchEngine(model, TrainingConfig())._optimizer.defaults["fused"] is True
    plain, _, _ = steps(6, dropout=0.0, optimizer={"fused": False})
    fused, _, _ = steps(6, dropout=0.0)
    assert fused == pytest.approx(plain, rel=1e-3)


def test_a_compiled_forward_pass_trains_the_same():
    plain, _, _ = steps(4, dropout=0.0)
    compiled, _, _ = steps(4, dropout=0.0, compile=True)
    assert compiled == pytest.approx(plain, rel=5e-3)
