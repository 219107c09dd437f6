"""Options of speed and memory change neither losses nor what is saved: compiling, one-kernel AdamW, checkpointing."""

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.models.composed import build_retriever
from cirray.training.config import LoopConfig, OptimizerConfig, TrainingConfig
from cirray.training.deepspeed_engine import DeepSpeedEngine
from cirray.training.loop import train
from cirray.training.optim import build_optimizer
from cirray.training.retrieval import RetrievalTask
from cirray.training.torch_engine import TorchEngine


def losses(task, config):
    return [row["loss"] for row in train(task, config, TorchEngine)]


@pytest.mark.parametrize("objective", ["finetune", "ptha"])
def test_a_compiled_forward_pass_trains_the_same(make_task, objective, tmp_path):
    plain_task, plain = make_task(objective=objective)
    task, config = make_task(objective=objective, compile=True, compile_backend="eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = losses(task, config)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 100
    assert found == pytest.approx(losses(plain_task, plain), rel=1e-5)
    task.save(task.model(), tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    names, wanted = ({*made.model().state_dict()} for made in (task, plain_task))
    assert names == wanted


def test_an_unknown_backend_and_compiling_under_deepspeed_are_refused(make_task):
    task, config = make_task(compile=True, compile_backend="inducter")
    with pytest.raises(ConfigError, match="Did you mean 'inductor'"):
        TorchEngine(task.model(), config)
    with pytest.raises(ConfigError, match="training.compile works with engine torch"):
        DeepSpeedEngine(task.model(), config.model_copy(update={"compile_backend": "eager"}))


def test_the_fused_optimiser_makes_the_steps_of_the_plain_one(make_task):
    task, config = make_task(steps=6)
    fused_task, fused = make_task(steps=6, optimizer={"fused": True})
    assert build_optimizer(fused_task.model(), fused).defaults["fused"] is True
    assert losses(fused_task, fused) == pytest.approx(losses(task, config), rel=1e-4)


def test_fused_is_automatic_on_accelerators_alone_and_refused_where_there_is_no_kernel():
    model = torch.nn.Linear(2, 2)
    assert not build_optimizer(model, LoopConfig()).defaults["fused"]
    away = LoopConfig(optimizer=OptimizerConfig(fused=True))
    with pytest.raises(ConfigError, match="no kernel for weights on meta"):
        build_optimizer(torch.nn.Linear(2, 2, device="meta"), away)


@pytest.mark.parametrize("objective", ["pretrain", "finetune", "sprc", "ptha"])
def test_checkpointing_does_not_change_the_losses(make_task, triplets, features, objective):
    task, config = make_task(objective=objective, dropout=0.1)
    settings = task.model().config.model_copy(update={"gradient_checkpointing": True})
    less = build_retriever(settings, task.model().tokenizer, 6, 0)
    assert losses(RetrievalTask(less, triplets, features, config), config) == pytest.approx(
        losses(task, config), rel=1e-5
    )


def test_the_settings_have_defaults_that_change_nothing():
    config = TrainingConfig()
    assert config.compile is False and config.optimizer.fused == "auto"
