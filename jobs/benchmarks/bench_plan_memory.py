"""What `cirray plan` says of a generator's training on the CPU against the memory that a step takes. Linux only.

    python jobs/benchmarks/bench_plan_memory.py language=SMOLLM2 root=~/cirray/quickstart

Needs the artifacts `world`, `towers` and `features` below `root` (`cirray quickstart` leaves them there). Each case
runs in a process of its own: one step of a single row first, so that every library is loaded, then all is freed, and
the peak of one whole step is taken above what is left. Freed memory goes back to the system at once
(`MALLOC_MMAP_THRESHOLD_`): what glibc keeps beside is up to three times as much, and no plan can know it.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from own_memory import own_kib

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.environ import limit_threads
from cirray.core.places import Run
from cirray.core.trees import Layer
from cirray.features.store import FeatureStore
from cirray.generators.mtg import ModificationTextModel
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.inputs import RecipesBeside
from cirray.pipelines.planning.training import plan_generator
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator_inputs import build_generator
from cirray.training.generation import AlignmentTask, GeneratorTask
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine
from cirray.types import Triplet

HONEST = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
TEXT = "make the large red star in the middle a small one now please"
CASES = {
    "frozen, 16 pairs": ("answers", "training.batch=16"),
    "frozen, 48 pairs": ("answers", "training.batch=48"),
    "frozen, 48 pairs in 4 pieces": ("answers", "training.batch=48 training.pieces=4"),
    "frozen, q_c, 32 pairs, bf16": ("answers", "training.batch=32 language_dtype=bfloat16 "
                                    "generator.settings.passes=[reference,target,difference]"),
    "LoRA, 16 pairs": ("answers", "training.batch=16 generator.settings.tuning=lora"),
    "LoRA, 32 pairs, layers again": ("answers", "training.batch=32 generator.settings.tuning=lora "
                                     "generator.settings.gradient_checkpointing=true"),
    "alignment by captions, 48": ("alignment", "alignment=captions alignment_training.batch=48"),
    "alignment by words, 512": ("alignment", "alignment=words alignment_training.batch=512"),
}  # fmt: skip
"""Name -> which loop, and the fields of a `GeneratorRun` that differ."""


class Bench(Run):
    """Which cases are measured."""

    language: str
    """Folder of the language model."""
    cases: tuple[str, ...] = tuple(CASES)
    """Rows of the table."""
    case: str = ""
    """Measure this one in this process, and print its figures as JSON."""


def main() -> None:
    """Measure every case and print the table."""
    limit_threads()
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    if bench.case:
        print(json.dumps(_measured(bench)))
        return
    print("| step | plan, GiB | measured | plan over measured |\n|---|---|---|---|")
    for case in bench.cases:
        command = [sys.executable, __file__, *sys.argv[1:], f"case={case}"]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **HONEST})
        planned, taken = json.loads(done.stdout.splitlines()[-1])
        print(f"| {case} | {planned:.2f} | {taken:.2f} | {planned / taken - 1:+.0%} |", flush=True)


def _measured(bench: Bench) -> tuple[float, float]:
    """GiB by the plan, and taken."""
    stage, fields = CASES[bench.case]
    run = resolve(GeneratorRun, [Layer(_tree(bench))], fields.split()).config
    _step(run, stage, 1)
    _freed()
    before = own_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    loop = run.training if stage == "answers" else run.alignment_training
    tokens = _step(run, stage, loop.batch)
    taken = own_kib() - before
    report = plan_generator(run, PlanConfig(gpu="cpu", answer_tokens=tokens), RecipesBeside())
    return report.value("all of it" if stage == "answers" else "alignment before it") / 2**30, taken / 2**20


def _tree(bench: Bench) -> dict[str, Any]:
    return {
        "root": bench.root, "language": bench.language, "data": {"format": "folder", "folder": {"root": "@world"}},
        "generator": {"settings": {"frame": "line"}},
    }  # fmt: skip


def _step(run: GeneratorRun, stage: str, batch: int) -> int:
    """One step of a stage; tokens of an answer."""
    model, features = build_generator(run), FeatureStore.open_many(list(run.features))
    assert isinstance(model, ModificationTextModel)
    ids = list(features.ids)[: batch + 1]
    if stage == "answers":
        loop = run.training.model_copy(update={"steps": 1, "batch": batch, **({"pieces": 1} if batch == 1 else {})})
        pairs = enumerate(pairwise(ids))
        rows = [Triplet(f"t-{at}", first, second, TEXT) for at, (first, second) in pairs]
        train(GeneratorTask(model, rows, features, loop), loop, TorchEngine)
    else:
        first = run.alignment_training.model_copy(update={"steps": 1, "batch": batch})
        captions = dict.fromkeys(ids[:batch], TEXT)
        task = AlignmentTask(model, features, first, captions=captions, words=run.alignment == "words")
        train(task, first, TorchEngine)
    return int(model.encode_answers([TEXT]).ids_BT.shape[1])


def _freed() -> None:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)


if __name__ == "__main__":
    sys.exit(guarded(main))
