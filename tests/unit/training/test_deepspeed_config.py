"""The user's DeepSpeed settings inside the YAML tree."""

import pytest
import torch

from cirray.core.errors import ConfigError
from cirray.training.config import TrainingConfig
from cirray.training.deepspeed_engine import DeepSpeedEngine, deepspeed_config


def test_settings_of_the_user_go_over_those_of_the_engine():
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "zero_force_ds_cpu_optimizer": False}
    tree = deepspeed_config(TrainingConfig(batch=64, zero_stage=2, deepspeed=offload), world=8)
    assert tree["zero_optimization"]["stage"] == 2 and tree["zero_optimization"]["contiguous_gradients"]
    assert tree["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert tree["zero_force_ds_cpu_optimizer"] is False and tree["train_micro_batch_size_per_gpu"] == 8
    assert deepspeed_config(TrainingConfig(batch=64, zero_stage=2), 8) != tree


@pytest.mark.parametrize(
    "settings", [{"train_batch_size": 4}, {"gradient_clipping": 1.0}, {"zero_optimization": {"stage": 3}}]
)
def test_settings_that_have_fields_of_their_own_are_refused(settings):
    with pytest.raises(ConfigError, match="is decided by training"):
        deepspeed_config(TrainingConfig(deepspeed=settings), world=1)


def test_bf16_weights_without_a_stage_are_refused():
    with pytest.raises(ConfigError, match="zero_stage 1, 2 or 3, or engine torch"):
        DeepSpeedEngine(torch.nn.Linear(2, 1), TrainingConfig(precision="bf16_weights", zero_stage=0))
