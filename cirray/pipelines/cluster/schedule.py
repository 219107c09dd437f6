"""Run a graph of stages in parallel on a few slots, as Ray tasks or in this process."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from cirray.core.artifacts import Manifest
from cirray.core.environ import worker_environment
from cirray.core.errors import ConfigError, StageError
from cirray.core.log import get_logger
from cirray.core.progress import redirected
from cirray.core.unfinished import restarting, restarts

_POLL_S = 0.5


@dataclass(frozen=True)
class Node:
    """One stage of a graph: `run(config)` once everything named in `after` is done.

    `slots` are the cores it keeps busy, and the threads of PyTorch in its own process.
    """

    name: str
    run: str
    """`module:function`."""
    config: Any
    after: tuple[str, ...] = ()
    slots: int = 1


@dataclass
class Outcome:
    """What a stage returned, and how long it took."""

    result: Any = None
    seconds: float = 0.0


Watch = Callable[[str, str, int, int | None, str], None]
"""Receives (stage, title, units done, total, note)."""


@dataclass
class Board:
    """Ray actor with every stage's last progress, for the driver; once closed, stages stop."""

    rows: dict[str, tuple[str, int, int | None, str]] = field(default_factory=dict)
    closed: bool = False

    def put(self, stage: str, title: str, done: int, total: int | None, note: str) -> bool:
        """Keep one stage's progress; False if that stage should stop."""
        self.rows[stage] = (title, done, total, note)
        return not self.closed

    def close(self) -> None:
        """Tell the stages to stop."""
        self.closed = True

    def get(self) -> dict[str, tuple[str, int, int | None, str]]:
        """All stages' last progress."""
        return dict(self.rows)


def check_graph(nodes: Sequence[Node]) -> None:
    """Refuse unknown or circular prerequisites. Raises ConfigError: naming the stage."""
    seen: set[str] = set()
    for node in nodes:
        missing = [name for name in node.after if name not in seen]
        if missing:
            raise ConfigError(f"Stage {node.name!r} comes after {missing[0]!r}, which is not listed before it.")
        seen.add(node.name)


def run_here(nodes: Sequence[Node]) -> dict[str, Outcome]:
    """Run the stages one after another in this process: the simple twin."""
    check_graph(nodes)
    outcomes = {}
    for node in nodes:
        begin = time.monotonic()
        result = _load(node.run)(node.config)
        outcomes[node.name] = Outcome(result, time.monotonic() - begin)
        get_logger(__name__).info("%s: %.1f s", node.name, outcomes[node.name].seconds)
    return outcomes


def run_graph(nodes: Sequence[Node], slots: int, watch: Watch) -> dict[str, Outcome]:
    """Run the stages as Ray tasks on a cluster that is already joined; at most `slots` cores are kept busy.

    Returns: Outcome of every stage by name.

    Raises:
        The first stage's error; the others stop at their next progress. Finished stages stay finished.
    """
    # not by ray.cancel: Ray 2.60 aborts the driver when a task's answer crosses its cancellation
    check_graph(nodes)
    board: Any = ray.remote(num_cpus=0)(Board).remote()
    task = ray.remote(num_cpus=0.01, max_retries=0, runtime_env={"env_vars": worker_environment()})(_execute)
    waiting = list(nodes)
    running: dict[Any, Node] = {}
    outcomes: dict[str, Outcome] = {}
    try:
        while waiting or running:
            for node in _startable(waiting, running, outcomes, slots):
                waiting.remove(node)
                running[task.remote(node, board, restarts())] = node
            finished, _ = ray.wait(list(running), timeout=_POLL_S)
            for reference in finished:
                outcomes[running.pop(reference).name] = ray.get(reference)
            rows: dict[str, Any] = ray.get(board.get.remote())
            _tell(watch, rows, running, outcomes)
    finally:
        board.close.remote()
    return outcomes


def _startable(waiting: list[Node], running: dict[Any, Node], outcomes: dict[str, Outcome], slots: int) -> list[Node]:
    free = slots - sum(node.slots for node in running.values())
    chosen: list[Node] = []
    for node in waiting:
        if all(name in outcomes for name in node.after) and (node.slots <= free or not (running or chosen)):
            chosen.append(node)
            free -= node.slots
    return chosen


def _execute(node: Node, board: Any, restart: bool = False) -> Outcome:
    def sink(title: str, done: int, total: int | None, note: str) -> None:
        if not ray.get(board.put.remote(node.name, title, done, total, note)):
            raise StageError(f"Stage {node.name!r} was stopped: another one failed, or its caller went away.")

    import torch

    torch.set_num_threads(node.slots)
    begin = time.monotonic()
    with redirected(sink), restarting(restart):
        result = _load(node.run)(node.config)
    return Outcome(result, time.monotonic() - begin)


def _tell(watch: Watch, rows: dict[str, Any], running: dict[Any, Node], outcomes: dict[str, Outcome]) -> None:
    for node in running.values():
        if node.name in rows:
            watch(node.name, *rows[node.name])
    for name, outcome in outcomes.items():
        watch(name, "", 1, 1, " · ".join(filter(None, (f"{outcome.seconds:.0f} s", learnt(outcome.result)))))


def _load(spec: str) -> Any:
    import importlib

    module, _, name = spec.partition(":")
    return getattr(importlib.import_module(module), name)


_COUNTED = ("triplets", "pairs", "labels", "rows", "images")


def learnt(result: Any) -> str:
    """How much there is of what a stage made, and how good it is where that was measured; "" for neither."""
    if not isinstance(result, Manifest):
        return ""
    counted = next((name for name in _COUNTED if result.counts.get(name)), None)
    parts = [f"{result.counts[counted]:,} {counted}"] if counted else []
    return " · ".join([*parts, *_quality(result.kind, result.metrics)])


def _quality(kind: str, metrics: dict[str, Any]) -> list[str]:
    if kind == "checkpoint":
        return [f"validation R@1 {100 * metrics['val_R@1']:.1f}"] if "val_R@1" in metrics else []
    if kind == "generator":
        ways = [metrics.get("trained", {}).get(way, {}).get("exact") for way in ("forward", "reverse")]
        shares = " / ".join(f"{100 * share:.1f}" for share in ways if share is not None)
        return [f"exact on held-out pairs {shares} % (forward / reverse)"] if shares else []
    return [f"{100 * metrics['exact']:.1f} % exact"] if "exact" in metrics else []
