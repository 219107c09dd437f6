"""How a pretrained language model best learns to compare two pictures: ways of training at one equal, small budget.

    python jobs/benchmarks/bench_comparison.py language=SMOLLM2 root=~/cirray/quickstart
    python jobs/benchmarks/bench_comparison.py language=SMOLLM2 root=~/cirray/quickstart device=cuda steps=2000 \
        batch=64 pairs=400 seeds=[0,1,2]

Needs the artifacts `world`, `towers` and `features` below `root` (`cirray quickstart` leaves them there). Every way
gets the same number of steps through the language model; the alignment before them does without it. Each row of the
table is written to `results` as soon as it is there, a killed run goes on from its last checkpoint, and a row that is
there is not made again.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.config import validate
from cirray.core.environ import limit_threads
from cirray.core.places import Run
from cirray.data.benchmark import Labelled, select_labels
from cirray.data.shapes.corpus import caption_bags, difference_bags
from cirray.data.shapes.world import read_scenes
from cirray.features.store import FeatureStore
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.trainable import AnswerLoss, Answers
from cirray.losses.output import LossOutput
from cirray.models.batch import Movable
from cirray.models.towers.language import bag_ids, embed_bags
from cirray.pipelines.data.datasets import read_usable
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import evaluate_texts, token_loss
from cirray.pipelines.texts.generator_inputs import alignment_task, build_generator, read_features
from cirray.training.callbacks import train_stage
from cirray.training.generation import GeneratorTask
from cirray.types import Triplet

_WIDTH = 24


class Bench(Run):
    """What is compared, and how long."""

    language: str
    """Folder of the language model."""
    ways: tuple[str, ...] = ("two passes", "q_c", "two passes, lora", "q_c, lora", "text first", "text first, q_c")
    """Rows of the table; `two passes, unaligned` and `two passes, unaligned, scaled` are known, too."""
    seeds: tuple[int, ...] = (0,)
    steps: int = 60
    """Steps through the language model."""
    batch: int = 16
    """Pairs a step."""
    lr: float = 1e-3
    """Peak learning rate of the steps."""
    align: int = 200
    """Steps of the alignment."""
    labels: int = 2000
    """Labelled triplets."""
    pairs: int = 48
    """Held-out pairs whose texts are judged, and whose human texts' loss is measured."""
    device: str = "cpu"
    results: str = "comparison.jsonl"
    """Where the rows go; checkpoints lie beside it."""


@dataclass(frozen=True)
class TextBatch(Movable):
    """Bags of two pictures and of their difference `[B, Q, W]`, and what is to be said."""

    reference_BQW: torch.Tensor
    target_BQW: torch.Tensor
    difference_BQW: torch.Tensor
    answers: Answers


class _FromText(nn.Module):
    """The generator with the words of two captions in place of two pictures' soft tokens."""

    def __init__(self, generator: ModificationTextModel) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, batch: TextBatch) -> AnswerLoss:
        """The answers' loss."""
        language, passes = self.generator.language, self.generator.config.passes
        bags = {"reference": batch.reference_BQW, "target": batch.target_BQW, "difference": batch.difference_BQW}
        soft = (embed_bags(language, bags[name]) if name in passes else None for name in bags)
        return self.generator.answer_loss(self.generator.prefix(*soft), batch.answers)


class TextTask(GeneratorTask):
    """Labelled triplets without pictures: captions of both images in, the modification out."""

    def __init__(
        self, generator: ModificationTextModel, triplets: Any, features: Any, config: Any, captions: Mapping[str, str]
    ) -> None:
        """Prepare."""
        super().__init__(generator, triplets, features, config)
        self._captions, self._reads = captions, generator
        for name in ("qformer", "projection"):
            getattr(generator, name).requires_grad_(False)

    def model(self) -> nn.Module:
        """The wrapped network."""
        return _FromText(self._reads)

    def batch(self, rows: Any) -> Any:
        """Triplets as bags."""
        known = [tuple(caption_bags(self._captions[name]) or () for name in ends(row)) for row in rows]
        bags = [[first for first, _ in known], [second for _, second in known]]
        bags.append([difference_bags(first, second) for first, second in known])
        language = self._reads.language
        first_BQW, second_BQW, difference_BQW = [
            torch.stack([bag_ids(language, bag, _WIDTH) for bag in side]) for side in bags
        ]
        answers = self._reads.encode_answers([row.modification for row in rows])
        return TextBatch(first_BQW, second_BQW, difference_BQW, answers)

    def pieces(self, batch: Any) -> list[Any]:
        """Whole."""
        return [batch]

    def loss(self, model: nn.Module, batch: Any, gather: Any) -> Any:
        """Mean over tokens."""
        found = model(batch)
        return LossOutput(found.total / found.tokens)


def ends(row: Triplet) -> tuple[str, str]:
    """Reference and target."""
    return row.reference_id, row.target_id


def main() -> None:
    """Make every row that is not there, and print the table."""
    limit_threads()
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    place = Path(bench.results).expanduser()
    for seed in bench.seeds:
        for way in bench.ways:
            key = {"way": way, "seed": seed, "steps": bench.steps, "batch": bench.batch}
            if not any(key.items() <= row.items() for row in _rows(place)):
                begin = time.process_time()
                row = {**key, **_row(bench, way, seed, place.with_suffix(""))}
                row["cpu_s"] = round(time.process_time() - begin)
                with open(place, "a") as stream:
                    stream.write(json.dumps(row) + "\n")
    _show(_rows(place))


def _rows(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.is_file() else []


def _row(bench: Bench, way: str, seed: int, work: Path) -> dict[str, Any]:
    run = _run(bench, way, seed)
    dataset = read_usable(run.data, run.features)
    labelled = select_labels(dataset, run.labels)
    labelled = replace(labelled, held_out=labelled.held_out[: bench.pairs])
    features = read_features(run, dataset, labelled)
    model = build_generator(run)
    assert isinstance(model, ModificationTextModel)
    if bench.device == "cpu":
        model.language.model.set_attn_implementation("eager")  # bf16 on a CPU: 1.9 s a step against 2.5 with sdpa
    if "scaled" in way:
        scale_soft_tokens(model, features, [row.reference_id for row in labelled.train[:64]])
    work = work / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}-{bench.steps}x{bench.batch}"
    kept = work.parent / f"aligned-{len(model.config.passes)}-{seed}-{bench.align}.pt"
    if "unaligned" in way:
        pass
    elif kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True), strict=False)
    else:
        task, _ = alignment_task(run, model, features, labelled)
        assert task is not None
        train_stage(task, run.alignment_training, work / "alignment", f"{way}, {seed}: align")
        torch.save(model.own_state(), kept)
    return _learned(bench, run, model, labelled, features, way, work)


@torch.no_grad()
def scale_soft_tokens(model: ModificationTextModel, features: FeatureStore, images: Sequence[str]) -> None:
    """Bring the untrained soft tokens to the length that the language model's words have, which is told."""
    soft_BQE = model.read_image(torch.from_numpy(features.get(list(images))).float())
    words = model.language.embed(torch.arange(len(model.language.tokenizer))).float().norm(dim=-1).mean()
    print(f"soft tokens {float(soft_BQE.norm(dim=-1).mean()):.1f}, words {float(words):.2f}")
    for weight in model.projection.parameters():
        weight.mul_(words / soft_BQE.norm(dim=-1).mean())


def _learned(
    bench: Bench, run: GeneratorRun, model: ModificationTextModel, labelled: Labelled, features: FeatureStore,
    way: str, work: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train on the labels, then judge what is written."""
    loop, found = run.training, dict[str, Any]()
    if way.startswith("text first"):
        half = loop.model_copy(update={"steps": bench.steps // 2})
        read = TextTask(model, labelled.train, features, half, labelled.captions)
        found["text_loss"] = round(train_stage(read, half, work / "text", f"{way}: text")[-1]["loss"], 3)
        model.requires_grad_(False)
        model.projection.requires_grad_(True)
        model.qformer.requires_grad_(True)
        loop, enter = half, model.enter
        model.enter = lambda stage: None  # type: ignore[method-assign]
        task = GeneratorTask(model, labelled.train, features, loop)
        model.enter = enter  # type: ignore[method-assign]
    else:
        task = GeneratorTask(model, labelled.train, features, loop)
    found["train_loss"] = round(train_stage(task, loop, work / "answers", f"{way}: answers")[-1]["loss"], 3)
    found["token_loss"] = token_loss(task, model, labelled.held_out)
    scenes = read_scenes(Path(run.data.folder.root))
    metrics, samples = evaluate_texts(run, model, labelled.held_out, features, scenes)
    for name in ("forward", "reverse"):
        found[name] = {key: metrics[name][key] for key in ("exact", "direction", "parses")}
    return {**found, "samples": [[row["human"], row["generated"]] for row in samples[:4]]}


def _run(bench: Bench, way: str, seed: int) -> GeneratorRun:
    passes = ["reference", "target", *(["difference"] if "q_c" in way else [])]
    tuning = "lora" if "lora" in way or "text" in way else "frozen"
    optimizer = {"lr": bench.lr}
    loop = {"steps": bench.steps, "batch": bench.batch, "optimizer": optimizer, "seed": seed, "checkpoint_every": 15}
    tree = {
        "root": bench.root, "data": {"format": "folder", "folder": {"root": "@world"}}, "language": bench.language,
        "language_dtype": "bfloat16", "labels": bench.labels, "alignment": "bags", "device": bench.device,
        "alignment_training": {"steps": bench.align, "batch": 64, "seed": seed, "checkpoint_every": 100},
        "training": loop, "seed": seed, "evaluate_pairs": bench.pairs, "decoding": {"max_new_tokens": 16, "batch": 32},
        "generator": {"settings": {"passes": passes, "tuning": tuning, "frame": "line"}},
    }  # fmt: skip
    return validate(GeneratorRun, tree)


def _show(rows: list[dict[str, Any]]) -> None:
    print("| way | seed | steps x batch | held-out nats a token | exact, forward / reverse | direction | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        ways = [row[name] for name in ("forward", "reverse")]
        exact, right = (" / ".join(f"{way[key]:.2f}" for way in ways) for key in ("exact", "direction"))
        budget = f"{row['steps']} x {row['batch']}"
        print(f"| {row['way']} | {row['seed']} | {budget} | {row['token_loss']} | {exact} | {right} | {row['cpu_s']} |")
    print(f"in all {sum(row['cpu_s'] for row in rows):,} processor seconds")


if __name__ == "__main__":
    sys.exit(guarded(main))
