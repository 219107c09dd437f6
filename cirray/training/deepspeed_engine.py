"""The engine on DeepSpeed: ZeRO 0-3, the torch engine's numbers step by step. The only file that imports deepspeed.

The optimiser and its groups are those of `optim.py`; DeepSpeed only partitions, reduces and clips. bf16 means autocast
over fp32 weights, bf16_weights over bf16 ones, as in the torch engine. The shared-memory collective that DeepSpeed
would compile on first use serves only inference and is switched off.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from cirray.core.environ import set_default, temporarily
from cirray.core.errors import ArtifactError, ConfigError
from cirray.core.trees import merged
from cirray.training.config import LoopConfig
from cirray.training.halves import norms_again, norms_in_float
from cirray.training.optim import Schedule, build_optimizer

ABOUT = "deepspeed.json"
SHARDS = "deepspeed"
UNIVERSAL = "universal"
_BUCKET_ELEMENTS = 50_000_000
_DECIDED = {
    "train_micro_batch_size_per_gpu": "batch", "train_batch_size": "batch", "gradient_accumulation_steps": "pieces",
    "gradient_clipping": "optimizer", "optimizer": "optimizer", "scheduler": "optimizer",
}  # fmt: skip
"""Settings of DeepSpeed that fields of `training` decide."""


def deepspeed_config(config: LoopConfig, world: int) -> dict[str, Any]:
    """DeepSpeed's configuration for one run; everything else (optimiser, schedule) is passed as objects."""
    zero: dict[str, Any] = {"stage": config.zero_stage, "overlap_comm": False}
    if config.zero_stage:
        zero |= {"reduce_bucket_size": _BUCKET_ELEMENTS, "contiguous_gradients": True}
    tree: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.batch // world,
        "gradient_accumulation_steps": 1,
        # without ZeRO the engine clips itself: it needs the norm, which DeepSpeed computes only when clipping
        "gradient_clipping": (config.optimizer.clip or 0.0) if config.zero_stage else 0.0,
        "zero_optimization": zero,
        "steps_per_print": None,
    }
    if config.bf16:
        # An empty list keeps the gradients' all-reduce in fp32, as in the torch engine.
        tree["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    if config.precision == "bf16_weights":
        tree |= {"bf16": {"enabled": True}, "communication_data_type": "fp32"}
    return _over(tree, config.deepspeed)


def _over(tree: dict[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The user's DeepSpeed settings over the engine's; batch and stage have fields of their own.

    Raises ConfigError for a setting that a field of `training` decides.
    """
    for name, by in _DECIDED.items():
        if name in more:
            raise ConfigError(f"training.deepspeed.{name} is decided by training.{by}; drop it.")
    if "stage" in dict(more.get("zero_optimization", {})):
        raise ConfigError("training.deepspeed.zero_optimization.stage is decided by training.zero_stage; drop it.")
    return merged(tree, more)


class DeepSpeedEngine:
    """One worker's DeepSpeed state behind the `Engine` protocol."""

    def __init__(self, model: nn.Module, config: LoopConfig, rank: int = 0, world: int = 1) -> None:
        """Partition model and optimiser over the ranks; under ZeRO 3 the model's parameters are empty outside forward
        passes.

        Above one worker torch.distributed must be initialised. A single process without a group gets one of its own.
        """
        self._model, self._config, self._rank, self._world = model, config, rank, world
        if config.compile:
            raise ConfigError("training.compile works with engine torch, not with deepspeed, which hooks into modules.")
        self._halved = config.precision == "bf16_weights"
        if self._halved and config.zero_stage == 0:
            raise ConfigError("training.precision=bf16_weights needs training.zero_stage 1, 2 or 3, or engine torch.")
        _check_shapes(model)
        self._names = _signature(model)
        self._schedule, self._steps = Schedule(config), 0
        self._frozen = _prepare_halves(model) if self._halved else {}
        optimizer = build_optimizer(model, config)
        self._settings = [
            {key: group[key] for key in ("weight_decay", "betas", "eps")} for group in optimizer.param_groups
        ]
        self._engine = _initialize(model, optimizer, config, rank, world)
        if config.zero_stage < 3:  # frozen weights stay as they are, as in the torch engine
            _exchange_data({item: kept.to(self.device) for item, kept in self._frozen.items()})

    @property
    def module(self) -> nn.Module:
        """DeepSpeed's wrapper; its call runs the partitioning hooks, other attributes are the model's."""
        return self._engine

    @property
    def device(self) -> torch.device:
        """Device for batches."""
        return torch.device(self._engine.device)

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        return self._schedule.lr(self._steps)

    def backward(self, loss: torch.Tensor, last: bool = True) -> None:
        """Add the gradients of this rank's loss, averaged over ranks and partitioned as the ZeRO stage says; without
        ZeRO and with stage 1 the ranks exchange them once, at the last.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self) -> float:
        """Clip, update, advance the schedule; returns the norm before clipping, equal on all ranks."""
        self._schedule.apply(self._engine.optimizer, self._steps)
        norm = None if self._config.zero_stage else self._clip()
        self._engine.step()
        self._steps += 1
        return float(self._engine.get_global_grad_norm() if norm is None else norm)

    def save(self, folder: Path) -> None:
        """Write every rank's shard; frozen weights stay out. The folder is shared, or one per node and merged later."""
        (folder / SHARDS).mkdir(exist_ok=True)
        self._engine.save_checkpoint(str(folder), tag=SHARDS, save_latest=False, exclude_frozen_parameters=True)
        for script in folder.glob("zero_to_*.py"):
            script.unlink(missing_ok=True)
        if self._rank == 0:
            about = {"world": self._world, "stage": self._config.zero_stage, "steps": self._steps, "names": self._names}
            (folder / ABOUT).write_text(json.dumps(about))

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, also from another number of ranks (and from ZeRO 1 to 2 and back).

        The files are pickles of this program: load checkpoints of your own runs only.

        Raises ArtifactError: no DeepSpeed state there, one of another model, or of a stage that cannot be converted.
        """
        about = self._read_about(folder)
        same = about["stage"] == self._config.zero_stage and about["world"] == self._world
        if same or about["stage"] == self._config.zero_stage == 0:
            path, _ = self._engine.load_checkpoint(str(folder), tag=SHARDS, load_module_strict=False)
        else:
            _make_universal(folder)
            path = self._load_universal(folder)
        if path is None:
            raise ArtifactError(
                f"{str(folder)!r} holds an incomplete DeepSpeed state. Resume from an older checkpoint."
            )
        self._steps = int(about["steps"])
        self._repair_settings()

    @contextlib.contextmanager
    def full_weights(self) -> Iterator[nn.Module]:
        """The plain model with whole fp32 weights on every rank, for saving; all ranks enter together."""
        with self._gathered():
            halves = _exchange_data(self._fp32_weights())
            try:
                yield self._model
            finally:
                _exchange_data(halves)

    def close(self) -> None:
        """Put the fp32 weights into the model; under ZeRO 3 no rank holds all of it."""
        if self._config.zero_stage < 3:
            _exchange_data(self._fp32_weights())
        if self._halved:
            norms_again(self._model)

    def _gathered(self) -> contextlib.AbstractContextManager[Any]:
        if self._config.zero_stage < 3:
            return contextlib.nullcontext()
        from deepspeed.runtime.zero.partition_parameters import GatheredParameters

        return GatheredParameters(list(self._model.parameters()), modifier_rank=None)

    def _fp32_weights(self) -> dict[nn.Parameter, torch.Tensor]:
        """What weights in bf16 are in fp32: the optimiser's copies, and frozen ones as they came; else nothing."""
        if not self._halved:
            return {}
        from deepspeed.utils import safe_get_full_fp32_param

        found = {item: safe_get_full_fp32_param(item) for item in self._model.parameters() if item.requires_grad}
        return found | {item: kept.to(self.device) for item, kept in self._frozen.items()}

    def _repair_settings(self) -> None:
        """ZeRO 3's universal loader gives all groups the first one's settings, and all states one shared counter."""
        optimizer = self._engine.optimizer
        for group, settings in zip(optimizer.param_groups, self._settings, strict=True):
            group.update(settings)
        for state in getattr(optimizer, "optimizer", optimizer).state.values():
            if torch.is_tensor(state.get("step")):
                state["step"] = state["step"].clone()

    def _clip(self) -> torch.Tensor:
        """Clip the averaged gradients (without ZeRO); returns the norm before clipping."""
        parameters = [item for item in self._model.parameters() if item.requires_grad]
        for item in parameters:
            if item.grad is None:
                item.grad = torch.zeros_like(item)
        return nn.utils.clip_grad_norm_(parameters, self._config.optimizer.clip or float("inf"))

    def _read_about(self, folder: Path) -> dict[str, Any]:
        path = folder / ABOUT
        if not path.is_file():
            raise ArtifactError(f"{str(folder)!r} holds no {ABOUT}: it is no checkpoint of the DeepSpeed engine.")
        about = json.loads(path.read_text())
        if about["names"] != self._names:
            raise ArtifactError(
                f"The checkpoint {str(folder)!r} is of another model (parameter names or shapes differ)."
            )
        found, wanted = int(about["stage"]), self._config.zero_stage
        if found != wanted and {found, wanted} != {1, 2}:
            raise ArtifactError(
                f"The checkpoint {str(folder)!r} was written with zero_stage {found} and cannot go on with {wanted}. "
                f"Set zero_stage={found}, or start a new run from the exported weights."
            )
        return about

    def _load_universal(self, folder: Path) -> str | None:
        self._engine._config.load_universal_checkpoint = True
        try:
            path, _ = self._engine.load_checkpoint(str(folder), tag=UNIVERSAL, load_module_strict=False)
        finally:
            self._engine._config.load_universal_checkpoint = False
        return path


def _prepare_halves(model: nn.Module) -> dict[nn.Parameter, torch.Tensor]:
    """Ready a model for weights that DeepSpeed rounds to bf16; returns the frozen ones as they are."""
    norms_in_float(model)
    return {item: item.detach().cpu().clone() for item in model.parameters() if not item.requires_grad}


def _exchange_data(weights: Mapping[nn.Parameter, torch.Tensor]) -> dict[nn.Parameter, torch.Tensor]:
    """Give weights other numbers; returns those that they had."""
    before = {item: item.data for item in weights}
    for item, data in weights.items():
        item.data = data
    return before


def _initialize(model: nn.Module, optimizer: torch.optim.Optimizer, config: LoopConfig, rank: int, world: int) -> Any:
    set_default("LOCAL_RANK", str(rank))
    if not dist.is_initialized():
        if world > 1:
            raise ConfigError(
                f"The DeepSpeed engine was asked for {world} ranks, but torch.distributed is not initialised."
            )
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    deepspeed = _import_for(next(model.parameters()).device)
    back = _unpack_outputs(model)
    with temporarily("TORCHDYNAMO_DISABLE", "1"):  # it would load torch's compiler for an optimiser of its own
        engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(config, world), dist_init_required=False
        )
    engine.register_forward_hook(back)
    return engine


def _import_for(device: torch.device) -> Any:
    """DeepSpeed on the model's device (it would pick a GPU whenever there is one)."""
    if device.type == "cpu":
        set_default("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if device.type == "cpu" and get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())
    # the table is made when first asked for, by running compilers for every operator: one that says no more will do
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    return deepspeed


def _unpack_outputs(model: nn.Module) -> Callable[[Any, Any, Any], Any]:
    """Give ZeRO 3's hooks a dictionary in place of a returned dataclass, in which they find no tensor.

    Returns: The hook for DeepSpeed's wrapper that makes the dataclass again.
    """
    kinds: list[type] = []

    def to_dict(module: nn.Module, inputs: Any, output: Any) -> Any:
        kinds[:] = [type(output)] if is_dataclass(output) else []
        return {item.name: getattr(output, item.name) for item in fields(output)} if kinds else output

    def to_dataclass(module: nn.Module, inputs: Any, output: Any) -> Any:
        return kinds[0](**output) if kinds else output

    model.register_forward_hook(to_dict)
    return to_dataclass


def _check_shapes(model: nn.Module) -> None:
    scalars = [name for name, item in model.named_parameters() if item.ndim == 0]
    if scalars:
        raise ConfigError(f"DeepSpeed cannot hold parameters without a dimension: {scalars}. Give them shape [1].")


def _signature(model: nn.Module) -> str:
    """Digest of the trained parameters' names and shapes (before ZeRO 3 empties them)."""
    lines = [f"{name}{tuple(item.shape)}" for name, item in model.named_parameters() if item.requires_grad]
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def _make_universal(folder: Path) -> None:
    """Convert a checkpoint's shards to DeepSpeed's world-independent format, once per node."""
    from deepspeed.checkpoint import ds_to_universal

    with open(folder / f".{UNIVERSAL}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (folder / UNIVERSAL).is_dir():
            return
        scratch = folder / f".{UNIVERSAL}.tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        arguments = SimpleNamespace(
            input_folder=str(folder / SHARDS), output_folder=str(scratch), num_extract_workers=1, num_merge_workers=1,
            keep_temp_folder=False, strict=True, inject_missing_state=True,
        )  # fmt: skip
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ds_to_universal.main(arguments)
        os.replace(scratch, folder / UNIVERSAL)
