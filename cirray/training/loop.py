"""The one training loop: retrievers and generators, on any engine, on any number of ranks."""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from cirray.core.errors import ConfigError
from cirray.core.seeding import derive_seed
from cirray.losses.output import LossOutput
from cirray.training.cached import cached_gradients
from cirray.training.checkpoint import read_checkpoint
from cirray.training.config import LoopConfig
from cirray.training.engine import EngineFactory, autocast
from cirray.training.gather import Gather, build_gather
from cirray.training.prefetch import Ahead
from cirray.training.state import LoopState, Row
from cirray.training.task import Divided, Parted, Task


class Callback:
    """Empty hooks; every rank calls them in the same order."""

    def on_start(self, state: LoopState) -> None:
        """Before the first step (after a checkpoint was read)."""

    def on_step(self, state: LoopState, row: Row | None) -> None:
        """After each step; `row` is the new history row on logged steps, else None."""

    def on_end(self, state: LoopState) -> None:
        """After the last step."""


def train(
    task: Task,
    config: LoopConfig,
    engine_factory: EngineFactory,
    callbacks: Sequence[Callback] = (),
    rank: int = 0,
    world: int = 1,
    resume: Path | None = None,
    device: str | torch.device | None = None,
) -> list[Row]:
    """Train until `config.steps` are done, or a callback ends the run; callbacks are called in order after every step.

    Above one worker torch.distributed is initialised by the caller. `resume` is a folder of
    `checkpoint.write_checkpoint`; `device` is where the model is moved to (None: where it is).

    Returns: History rows: step, loss, one entry per term, lr, grad_norm; means over ranks, the same on every rank.

    Raises ConfigError when the loss or its gradient is not finite, naming the step and the terms.
    """
    _check_world(config, world)
    torch.manual_seed(derive_seed(config.seed, "start"))
    model = task.model() if device is None else task.model().to(device)
    state = LoopState(task, config, engine_factory(model, config, rank, world), rank, world)
    if resume is not None:
        read_checkpoint(resume, state)
    gather = build_gather(world)
    _each(callbacks, "on_start", state)
    remaining = 0 if state.finished else config.steps - state.step
    with Ahead(islice(task.batches(state.step, rank, world), remaining) if remaining else ()) as batches:
        for batch in batches:
            row = _step(state, batch, gather)
            batches.rest()  # callbacks have tokenizers and features to themselves
            _each(callbacks, "on_step", state, row)
            if state.finished:
                break
    if not state.finished:
        raise ConfigError(f"The task ran out of batches after step {state.step} of {config.steps}.")
    _each(callbacks, "on_end", state)
    state.engine.close()
    return state.history


def _step(state: LoopState, batch: Any, gather: Gather) -> Row | None:
    config, engine = state.config, state.engine
    # dropout depends on the step, so a resumed run needs no saved random state
    torch.manual_seed(derive_seed(config.seed, "dropout", state.step, state.rank))
    engine.module.train()
    output, lr = _gradients(state, batch, gather), engine.lr
    norm = engine.step()
    _check_finite(state, output, norm)
    state.step += 1
    if state.step % config.log_every and not state.finished:
        return None
    row = {"step": float(state.step), **_means(output, gather), "lr": lr, "grad_norm": norm}
    state.history.append(row)
    return row


def _gradients(state: LoopState, batch: Any, gather: Gather) -> LossOutput:
    """Loss of a batch, whole or in pieces one after another, with the gradients left at the weights."""
    if isinstance(batch, Parted):
        return cached_gradients(state, batch, gather)
    engine, task, found = state.engine, state.task, list[LossOutput]()
    pieces = list(task.pieces(batch)) if isinstance(task, Divided) else [batch]
    for number, piece in enumerate(pieces):
        piece = piece.to(engine.device) if hasattr(piece, "to") else piece
        with autocast(engine.device, state.config):
            output = task.loss(engine.module, piece, gather)
        engine.backward(output.total, last=number == len(pieces) - 1)
        found.append(LossOutput(output.total.detach(), output.terms))
    if len(found) == 1:
        return found[0]
    terms = {name: torch.stack([output.terms[name] for output in found]).sum() for name in found[0].terms}
    return LossOutput(torch.stack([output.total for output in found]).sum(), terms)


def _means(output: LossOutput, gather: Gather) -> Row:
    names = ["loss", *output.terms]
    values = torch.stack([output.total.detach().float(), *(term.detach().float() for term in output.terms.values())])
    return dict(zip(names, (gather.total(values) / gather.world).tolist(), strict=True))


def _check_finite(state: LoopState, output: LossOutput, norm: float) -> None:
    loss = float(output.total.detach())
    if math.isfinite(loss) and math.isfinite(norm):
        return
    terms = ", ".join(f"{name} {float(value):.4g}" for name, value in output.terms.items())
    raise ConfigError(
        f"Training stopped at step {state.step}: loss {loss}, gradient norm {norm} ({terms}). "
        f"Lower optimizer.lr (now {state.config.optimizer.lr}), set optimizer.clip, or use precision fp32."
    )


def _check_world(config: LoopConfig, world: int) -> None:
    if config.batch % world:
        raise ConfigError(
            f"batch {config.batch} (global) does not divide by {world} workers. "
            f"Use a multiple of {world}, for example {math.ceil(config.batch / world) * world}."
        )


def _each(callbacks: Sequence[Callback], hook: str, *arguments: Any) -> None:
    for callback in callbacks:
        getattr(callback, hook)(*arguments)
