"""Checkpoints for resuming: one folder per step, renamed when complete; the newest is found by name."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cirray.core.errors import ArtifactError, damage_told
from cirray.training.state import Best, LoopState

LOOP, BEST = "loop.json", "best.pt"
_NAME = re.compile(r"step-(\d{8})")


def write_checkpoint(folder: Path, state: LoopState) -> None:
    """Write this rank's share of a checkpoint into an existing folder (rank 0 adds step, history, best weights).

    Every rank calls it, with one folder on shared storage or one folder per node.
    """
    state.engine.save(folder)
    if state.rank:
        return
    loop: dict[str, Any] = {"step": state.step, "history": state.history}
    if state.best is not None:
        loop |= {"best": [state.best.step, state.best.value, state.best.misses], "stopped": state.stopped}
        torch.save(state.best.weights, folder / BEST)
    (folder / LOOP).write_text(json.dumps(loop))


def read_checkpoint(folder: Path, state: LoopState) -> None:
    """Restore engine, step, history and the best weights in place.

    Raises ArtifactError when the folder holds no complete checkpoint of this model and engine.
    """
    path = folder / LOOP
    if not path.is_file():
        raise ArtifactError(
            f"{str(folder)!r} is no training checkpoint (no {LOOP}). Give a folder named step-XXXXXXXX."
        )
    with damage_told(folder, "Delete this checkpoint to go on from an earlier one, or start anew with --restart."):
        state.engine.load(folder)
        loop = json.loads(path.read_text())
        state.step, state.history = int(loop["step"]), list(loop["history"])
        if "best" in loop:
            kept = torch.load(folder / BEST, map_location="cpu", weights_only=True) if state.rank == 0 else {}
            state.best, state.stopped = (
                Best(int(loop["best"][0]), float(loop["best"][1]), int(loop["best"][2]), kept),
                bool(loop["stopped"]),
            )


def latest_checkpoint(root: Path) -> Path | None:
    """The complete checkpoint of the highest step below `root`, or None."""
    found = [item for item in root.glob("step-*") if _NAME.fullmatch(item.name) and (item / LOOP).is_file()]
    return max(found, key=lambda item: item.name, default=None)


def save_step(root: Path, state: LoopState, keep: int) -> Path:
    """Write `root/step-XXXXXXXX` under a temporary name, rename it when all ranks are done, drop old ones."""
    final = root / f"step-{state.step:08d}"
    scratch = root / f".{final.name}.tmp"
    if state.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    _barrier(state.world)
    write_checkpoint(scratch, state)
    _barrier(state.world)
    if state.rank == 0:
        shutil.rmtree(final, ignore_errors=True)
        os.replace(scratch, final)
        for old in sorted(item for item in root.glob("step-*") if _NAME.fullmatch(item.name))[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    _barrier(state.world)
    return final


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
