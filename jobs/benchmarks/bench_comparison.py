"""How a pretrained language model best learns to compare two pictures: ways of training at one equal, small budget.

    python jobs/benchmarks/bench_comparison.py language=SMOLLM2 seeds=[0,1,2]              # on the embedded world
    python jobs/benchmarks/bench_comparison.py language=SMOLLM2 seeds=[0,1,2] nlvr=NLVR    # on the NLVR scenes
    sh jobs/benchmarks/comparison.sh language=SMOLLM2                                      # on one GPU, a larger budget

The data set, its towers and its features are made below `root` where they are not there. Every way gets the same number
of steps through the language model; the alignment before them does without it. Each row is written to `results` as soon
as it is there, a killed run goes on from its last checkpoint, and a row that is there is not made again.
"""

import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.artifacts import is_complete
from cirray.core.config import validate
from cirray.core.environ import limit_threads
from cirray.core.errors import ConfigError
from cirray.core.places import Run
from cirray.data.benchmark import Labelled, select_labels
from cirray.data.shapes.corpus import Bags, caption_bags, difference_bags
from cirray.data.shapes.world import read_scenes
from cirray.features.store import FeatureStore
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.trainable import AnswerLoss, Answers
from cirray.losses.output import LossOutput
from cirray.models.batch import Movable
from cirray.models.towers.language import bag_ids, embed_bags
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.datasets import read_usable
from cirray.pipelines.data.world import run_world
from cirray.pipelines.features.config import EmbedRun, TowersRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.features.towers import run_towers
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import judge_texts
from cirray.pipelines.texts.generator_inputs import build_generator, caption_pairs, read_features
from cirray.pipelines.texts.heldout import write_texts
from cirray.training.callbacks import train_stage
from cirray.training.generation import AlignmentTask, GeneratorTask
from cirray.types import Triplet

_WIDTH = 24
sys.path.append(str(Path(__file__).resolve().parents[1] / "data"))  # where NLVR's converter lies


class Bench(Run):
    """What is compared, and how long."""

    language: str
    """Folder of the language model."""
    nlvr: str = ""
    """Folder of the NLVR repository, with `dev/dev.json` and `dev/images`; empty: the embedded world."""
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
        self, generator: ModificationTextModel, triplets: Any, features: Any, config: Any, bags: Mapping[str, Bags]
    ) -> None:
        """Prepare."""
        super().__init__(generator, triplets, features, config)
        self._bags, self._reads = bags, generator
        for name in ("qformer", "projection"):
            getattr(generator, name).requires_grad_(False)

    def model(self) -> nn.Module:
        """The wrapped network."""
        return _FromText(self._reads)

    def batch(self, rows: Any) -> Any:
        """Triplets as bags."""
        known = [tuple(self._bags[name] for name in ends(row)) for row in rows]
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
    place, data = Path(bench.results).expanduser(), "nlvr" if bench.nlvr else "world"
    said = {"data": data, "steps": bench.steps, "batch": bench.batch}
    wanted: list[dict[str, Any]] = [{"way": way, "seed": seed, **said} for seed in bench.seeds for way in bench.ways]
    missing = [key for key in wanted if not any(key.items() <= row.items() for row in _rows(place))]
    if bench.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device={bench.device!r} is not there. Take a machine with a GPU, or leave it out.")
    if missing and not is_complete(f"{_root(bench)}/features"):
        _prepare(bench)
    for key in missing:
        begin = _clocks()
        row = {**key, **_row(bench, key["way"], key["seed"], place.with_suffix("") / data)}
        row["cpu_s"], row["wall_s"] = (round(now - then) for now, then in zip(_clocks(), begin, strict=True))
        with open(place, "a") as stream:
            stream.write(json.dumps(row) + "\n")
    _show(_rows(place))


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _prepare(bench: Bench) -> None:
    """Make the data set, its towers and its features, or what of them is missing."""
    data, trained = {"format": "folder", "folder": {"root": "@world"}}, {}
    if bench.nlvr:
        importlib.import_module("nlvr").write_nlvr(Path(bench.nlvr), Path(_root(bench)).expanduser() / "world")
        trained = {"vision": "train", "vision_training": {"objective": "captions"}}
    else:
        run_world(validate(WorldRun, {"root": bench.root}))
    run_towers(validate(TowersRun, {"root": _root(bench), "data": data, **trained}))
    run_embed(validate(EmbedRun, {"root": _root(bench), "data": data, "ray": {"enabled": False}}))


def _root(bench: Bench) -> str:
    return f"{bench.root}/nlvr" if bench.nlvr else bench.root


def _rows(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in place.read_text().splitlines()] if place.is_file() else []


def _row(bench: Bench, way: str, seed: int, work: Path) -> dict[str, Any]:
    run = _run(bench, way, seed)
    dataset = read_usable(run.data, run.features)
    labelled = select_labels(dataset, run.labels)
    apart = max(len(labelled.held_out) // bench.pairs, 1) if bench.nlvr else 1  # there, neighbours share a reference
    labelled = replace(labelled, held_out=labelled.held_out[::apart][: bench.pairs])
    read = importlib.import_module("nlvr").cell_words if bench.nlvr else caption_bags
    bags = {name: read(text) or () for name, text in labelled.captions.items()}
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
        model.load_state_dict(torch.load(kept, "cpu", weights_only=True), strict=False)
    else:
        pairs = caption_pairs(labelled.train, bags) if "difference" in model.config.passes else None
        task = AlignmentTask(model, features, run.alignment_training, bags, labelled.captions, pairs)
        train_stage(task, run.alignment_training, work / "alignment", f"{way}, {seed}: align")
        torch.save(model.own_state(), kept)
    return _learned(bench, run, model, labelled, bags, features, way, work)


@torch.no_grad()
def scale_soft_tokens(model: ModificationTextModel, features: FeatureStore, images: Sequence[str]) -> None:
    """Bring the untrained soft tokens to the length that the language model's words have, which is told."""
    at = next(model.parameters()).device
    soft_BQE = model.read_image(torch.from_numpy(features.get(list(images))).float().to(at))
    words = model.language.embed(torch.arange(len(model.language.tokenizer), device=at)).float().norm(dim=-1).mean()
    print(f"soft tokens {float(soft_BQE.norm(dim=-1).mean()):.1f}, words {float(words):.2f}")
    for weight in model.projection.parameters():
        weight.mul_(words / soft_BQE.norm(dim=-1).mean())


def _learned(
    bench: Bench, run: GeneratorRun, model: ModificationTextModel, labelled: Labelled, bags: Mapping[str, Bags],
    features: FeatureStore, way: str, work: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train on the labels, then judge what is written."""
    loop, found = run.training, dict[str, Any]()
    if way.startswith("text first"):
        half = loop.model_copy(update={"steps": bench.steps // 2})
        read = TextTask(model, labelled.train, features, half, bags)
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
    made, found["token_loss"] = write_texts(run, None, model, labelled.held_out, features, answers=True)
    world = Path(run.data.folder.root).expanduser()
    scenes = None if bench.nlvr else read_scenes(world)
    metrics, samples = judge_texts(labelled.held_out, made, scenes)
    metrics |= judge_nlvr(world, samples) if bench.nlvr else {}
    for name in ("forward", "reverse"):
        found[name] = {key: metrics[name][key] for key in ("exact", "parses")}
    return {**found, "samples": [[row["human"], row["generated"]] for row in samples[:4]]}


def judge_nlvr(world: Path, samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Shares of texts, `forward` and `reverse`, that mean the pair's change, and that are texts of the templates."""
    nlvr, found = importlib.import_module("nlvr"), dict[str, dict[str, float]]()
    lines = [json.loads(line) for line in (world / "objects.jsonl").read_text().splitlines()]
    known = {row["image"]: [nlvr.Item(*words[:3]) for words in row["objects"]] for row in lines}
    for name, text, first, second in (
        ("forward", "generated", "reference", "target"), ("reverse", "reverse", "target", "reference"),
    ):  # fmt: skip
        said = [nlvr.meanings().get(" ".join((row[text] or "").lower().split())) for row in samples]
        true = [nlvr.difference(known[row[first]], known[row[second]]) for row in samples]
        exact = fmean(a is not None and a == b for a, b in zip(said, true, strict=True))
        found[name] = {"exact": round(exact, 4), "parses": round(fmean(a is not None for a in said), 4)}
    return found


def _run(bench: Bench, way: str, seed: int) -> GeneratorRun:
    passes = ["reference", "target", *(["difference"] if "q_c" in way else [])]
    tuning = "lora" if "lora" in way or "text" in way else "frozen"
    optimizer = {"lr": bench.lr}
    each = max(bench.steps // 4, 1)
    loop = {"steps": bench.steps, "batch": bench.batch, "optimizer": optimizer, "seed": seed, "checkpoint_every": each}
    decoding = {"max_new_tokens": 16, "batch": 32 if bench.device == "cpu" else 512}
    tree = {
        "root": _root(bench), "data": {"format": "folder", "folder": {"root": "@world"}}, "language": bench.language,
        "language_dtype": "bfloat16", "labels": bench.labels, "alignment": "bags", "device": bench.device,
        "alignment_training": {"steps": bench.align, "batch": 64, "seed": seed, "checkpoint_every": 100},
        "training": loop, "seed": seed, "evaluate_pairs": bench.pairs, "decoding": decoding,
        "generator": {"settings": {"passes": passes, "tuning": tuning, "frame": "line"}},
    }  # fmt: skip
    return validate(GeneratorRun, tree)


def _show(rows: list[dict[str, Any]]) -> None:
    print("| data | way | steps x batch | seeds | nats a token | of the grammar | exact, forward / reverse | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    names = ("data", "way", "steps", "batch")
    for data, way, steps, batch in dict.fromkeys(tuple(row[name] for name in names) for row in rows):
        own = [row for row in rows if tuple(row[name] for name in names) == (data, way, steps, batch)]
        parses, *exact = (
            _spread([100 * row[side][key] for row in own], 0)
            for side, key in (("forward", "parses"), ("forward", "exact"), ("reverse", "exact"))
        )
        nats, cpu = _spread([row["token_loss"] for row in own], 2), _spread([row["cpu_s"] for row in own], 0)
        cells = (data, way, f"{steps} x {batch}", len(own), nats, f"{parses} %", f"{' / '.join(exact)} %", cpu)
        print(f"| {' | '.join(map(str, cells))} |")
    print(f"in all {sum(row['cpu_s'] for row in rows):,} processor seconds")


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    middle = f"{fmean(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ± {stdev(values):.{digits}f}"


if __name__ == "__main__":
    sys.exit(guarded(main))
