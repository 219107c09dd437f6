"""Contrast of large batches: memory and CPU seconds of the loss alone, and of a training step in pieces, by batch size.

    python jobs/benchmarks/bench_contrast.py
    python jobs/benchmarks/bench_contrast.py sizes=[1024,4096] whole=4096 rows=1024

Every figure comes from a process of its own: its peak memory over what it had before. The loss is InfoNCE forward and
backward; its value and the queries' gradients are compared with 256 rows worked out in float64.
"""

import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from own_memory import own_kib
from torch.nn import functional

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.log import say
from cirray.core.places import Run
from cirray.losses.contrastive import contrastive
from cirray.losses.hidden import Hidden
from cirray.losses.sums import row_sums
from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig
from cirray.models.scoring import score
from cirray.models.text import build_tokenizer
from cirray.training.config import TrainingConfig
from cirray.training.loop import train
from cirray.training.retrieval import RetrievalTask
from cirray.training.torch_engine import TorchEngine
from cirray.types import Triplet

_TAU, _CHECKED, _WORDS = 0.05, 256, ("red", "blue", "small", "large", "star", "square", "gone", "left")


class Bench(Run):
    """What is measured."""

    sizes: tuple[int, ...] = (1024, 4096, 16_384, 65_536)
    """Batches."""
    whole: int = 16_384
    """Largest batch whose matrix of scores is also taken whole."""
    width: int = 256
    """Width of the vectors."""
    tokens: int = 1
    """Vectors of a candidate (maximum over them)."""
    rows: int = 16_384
    """Largest batch of the training step; 0: none."""
    piece: int = 256
    """Rows of a piece of the training step."""
    case: str = ""
    """Of a process of its own: what it measures."""


def main() -> None:
    """Measure every case in its own process, and print the tables; with `case` the case alone."""
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    if bench.case:
        kind, rows, chunk = bench.case.split(":")
        say(json.dumps({"loss": _loss, "step": _step}[kind](bench, int(rows), chunk)))
        return
    say("| batch | whole: MB | CPU s | tiles: MB | CPU s | furthest from float64 |\n|---|---|---|---|---|---|")
    for size in bench.sizes:
        whole = _measured(f"loss:{size}:whole") if size <= bench.whole else {"gap": 0.0}
        tiles = _measured(f"loss:{size}:auto")
        cells = [f"{way[name]:,}" if name in way else "" for way in (whole, tiles) for name in ("mb", "s")]
        say(f"| {size:,} | {' | '.join(cells)} | {max(whole['gap'], tiles['gap']):.0e} |")
    steps = [size for size in (bench.piece, *bench.sizes) if size <= bench.rows]
    if steps:
        say(f"\n| batch of the Q-Former, pieces of {bench.piece} | MB of a step | rows per CPU s |\n|---|---|---|")
    for size in steps:
        found = _measured(f"step:{size}:auto")
        say(f"| {size:,} | {found['mb']:,} | {found['rate']:,} |")
    say(f"\n{torch.get_num_threads()} threads; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}.")


def _measured(case: str) -> dict[str, Any]:
    words = [sys.executable, __file__, *sys.argv[1:], f"case={case}"]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def _loss(bench: Bench, size: int, chunk: str) -> dict[str, Any]:
    """Peak memory and seconds of one loss with its gradients, and how far they are from float64."""
    noise = torch.Generator().manual_seed(0)
    query = functional.normalize(torch.randn(size, bench.width, generator=noise), dim=-1)
    images = functional.normalize(
        torch.randn(size, bench.tokens, bench.width, generator=noise) + query[:, None], dim=-1
    )
    keys = torch.randint(size, (size,), generator=noise)  # a third of the targets are there again
    hidden, query, images = Hidden(keys, torch.arange(size)), query.requires_grad_(), images.requires_grad_()
    before, begin = own_kib(), time.process_time()
    sums = row_sums(score, query, images, _TAU, hidden, chunk=None if chunk == "whole" else "auto")
    loss = contrastive(sums)
    loss.mean().backward()
    seconds = time.process_time() - begin
    assert query.grad is not None
    found = {"mb": round((own_kib() - before) / 1024), "s": round(seconds, 2)}
    rows = slice(0, _CHECKED)
    exact = query.detach()[rows].double().requires_grad_()
    logits = score(exact, images.detach().double()).masked_fill(hidden.mask(rows), -torch.inf) / _TAU
    wanted = functional.cross_entropy(logits, torch.arange(size)[rows], reduction="none")
    wanted.sum().backward()
    assert exact.grad is not None
    apart = [(loss.detach()[rows] - wanted.detach()).abs().max(), (query.grad[rows] * size - exact.grad).abs().max()]
    return {**found, "gap": float(max(apart))}


class _Features:
    """Random patch tokens by number."""

    def get(self, ids: Any) -> np.ndarray:
        """Tokens of images."""
        return np.stack([np.random.default_rng(int(image)).normal(size=(16, 64)).astype(np.float16) for image in ids])

    def __contains__(self, image: object) -> bool:
        return True


def _step(bench: Bench, size: int, chunk: str) -> dict[str, Any]:
    """Peak memory over that of a built model, and rows a second, of two steps."""
    rng = np.random.default_rng(0)
    rows = [
        Triplet(str(at), str(at), str(size + at), " ".join(rng.choice(_WORDS, 4)), None, group_id="")
        for at in range(size)
    ]
    sizes = QFormerConfig(width=128, heads=4, queries=4, layers=4, intermediate=512, positions=32)
    retriever = build_retriever(RetrieverConfig(qformer=sizes, embed_dim=64), build_tokenizer(_WORDS), 64)
    fields = {"steps": 2, "batch": size, "pieces": max(size // bench.piece, 1), "negatives": "targets"}
    config = TrainingConfig.model_validate({**fields, "objective": "finetune"})
    task = RetrievalTask(retriever, rows, _Features(), config)
    before, begin = own_kib(), time.process_time()
    train(task, config, TorchEngine)
    return {"mb": round((own_kib() - before) / 1024), "rate": round(2 * size / (time.process_time() - begin))}


if __name__ == "__main__":
    sys.exit(guarded(main))
