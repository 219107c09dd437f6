"""Memory and operations of a training step or forward pass, traced on tensors without memory.

The real modules run under `cirray.models.outlines.weightless`: operators return shapes, nothing is allocated. Sizes are
those of a CPU run; `gpu=True` follows a GPU where the two differ (attention with dropout keeps no matrix of weights
there, and LayerNorm under bf16 autocast works in fp32).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

Loss = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Trace:
    """Bytes kept for the backward pass, most bytes alive at once beside the weights, floating-point operations.

    `saved` counts every storage once, without weights and inputs; `peak` includes gradients as they appear. `kernels`
    operators made new tensors, `written` bytes in all.
    """

    saved: int
    peak: int
    flops: int
    kernels: int = 0
    written: int = 0


def trace_step(loss: Loss, modules: nn.Module, inputs: Any = (), bf16: bool = False, gpu: bool = True) -> Trace:
    """Trace forward and backward of a loss, called under `weightless` as modules and inputs were made.

    Weights of `modules` and the tensors of `inputs` do not count. `bf16`: the forward pass under autocast, as the
    engines do; `gpu`: as on a GPU.
    """
    saved = Saved(modules, inputs)

    def step() -> None:
        with saved, torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()

    with ExitStack() as stack:
        if gpu:
            stack.enter_context(_gpu_rules(bf16))
        alive = _measured(step, modules, inputs)
    modules.zero_grad(set_to_none=True)
    return Trace(saved.bytes, alive.peak, alive.flops, alive.kernels, alive.written)


def trace_forward(forward: Callable[[], Any], modules: nn.Module, inputs: Any = (), gpu: bool = True) -> Trace:
    """Trace a pass without gradients."""
    with ExitStack() as stack:
        if gpu:
            stack.enter_context(_gpu_rules(False))
        stack.enter_context(torch.no_grad())
        alive = _measured(forward, modules, inputs)
    return Trace(0, alive.peak, alive.flops, alive.kernels, alive.written)


class Saved:
    """Inside, counts the bytes of the distinct storages that a forward pass keeps for its backward pass.

    Those of weights and inputs do not count. Works on real tensors too, to check the estimate.
    """

    def __init__(self, modules: nn.Module, inputs: Any = ()) -> None:
        self._outside, self._found = _storages(modules, inputs), dict[int, int]()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> "Saved":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        return sum(self._found.values())

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._outside:
            self._found[storage._cdata] = storage.nbytes()
        return tensor.detach()


def _measured(work: Callable[[], Any], modules: nn.Module, inputs: Any) -> "_Alive":
    with _Alive(_storages(modules, inputs)) as tracker:
        work()
    return tracker


def _storages(modules: nn.Module, inputs: Any) -> dict[int, torch.UntypedStorage]:
    """Storages of weights and inputs; holding them keeps their numbers from being given to others."""
    own = [*modules.parameters(), *modules.buffers()]
    own += [item for item in tree_iter(_plain(inputs)) if isinstance(item, torch.Tensor)]
    storages = (tensor.untyped_storage() for tensor in own)
    return {storage._cdata: storage for storage in storages}


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, for the tree functions."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    names = getattr(value, "__dataclass_fields__", None)
    return {name: _plain(getattr(value, name)) for name in names} if names else value


class _Alive(TorchDispatchMode):
    """Counts operators' products, and the bytes of all storages that they have returned and that still live."""

    def __init__(self, outside: Mapping[int, torch.UntypedStorage]) -> None:
        super().__init__()
        self._outside, self._live = outside, dict[int, int]()
        self._now = self.peak = self.flops = self.kernels = self.written = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        self.flops += count(*args, **kwargs, out_val=result) if count else 0
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._live or key in self._outside:
            return
        self._live[key] = storage.nbytes()
        self._now += self._live[key]
        self.kernels, self.written = self.kernels + 1, self.written + self._live[key]
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, partial(self._drop, key))

    def _drop(self, key: int) -> None:
        self._now -= self._live.pop(key, 0)


@contextmanager
def _gpu_rules(bf16: bool) -> Iterator[None]:
    """Inside, a CPU trace keeps what a GPU would keep.

    The functions themselves are changed: a torch mode would not hold for what checkpointing computes again.
    """
    functions: Any = F
    attend, norm = functions.scaled_dot_product_attention, functions.layer_norm

    def attention(*given: Any, **named: Any) -> torch.Tensor:
        named = {name: value for name, value in named.items() if name != "dropout_p"}
        return attend(*given[:4], *([0.0] if len(given) > 4 else []), *given[5:], **named)

    def layer_norm(x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        return norm(x.float() if bf16 and x.dtype == torch.bfloat16 else x, *given, **named)

    functions.scaled_dot_product_attention, functions.layer_norm = attention, layer_norm
    try:
        yield
    finally:
        functions.scaled_dot_product_attention, functions.layer_norm = attend, norm
