"""Full-size models with random weights on one GPU: what a step takes, what it needs, how far it is from the floor.

    python jobs/benchmarks/bench_gpu.py [--device cpu] [--small] [parts=[cached,pixels,generator,generate]] [out=FILE]

Pure torch and transformers: no ray, deepspeed, faiss or open_clip is imported, nothing is fetched, and weights are
random. Every figure is printed, and written to `out` as a line of JSON, as soon as it is there: a run that is cut keeps
what it has measured, and `parts`, `beams` and `sweep` choose what is left.
"""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cirray.cli.main import guarded
from cirray.cli.words import overrides_of
from cirray.core.config import Config, load_config
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.log import say
from cirray.data.config import TransformConfig
from cirray.generators.config import DecodingConfig, GeneratorConfig, ReaderConfig
from cirray.generators.decoding import decode
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.writer import TextWriter
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch
from cirray.models.composed import QFormerRetriever
from cirray.models.config import QFormerConfig, RetrieverConfig, VisionTowerConfig
from cirray.models.outlines import weightless
from cirray.models.text import build_tokenizer
from cirray.models.towers.config import LanguageModelConfig
from cirray.models.towers.hf_blip2 import VisionTower, build_vision_tower
from cirray.models.towers.language import build_language_model, build_word_tokenizer
from cirray.pipelines.planning.config import GPUS, Gpu
from cirray.pipelines.planning.memory import count_weights
from cirray.pipelines.planning.steps import Tokens, count_retriever
from cirray.training.config import LoopConfig, TrainingConfig
from cirray.training.engine import autocast
from cirray.training.gather import NoGather
from cirray.training.generation import GeneratorTask
from cirray.training.objectives import retrieval_loss
from cirray.training.retrieval import RetrievalTask
from cirray.training.torch_engine import TorchEngine
from cirray.types import Pair, Triplet

GIB = 2**30
PARTS = ("cached", "pixels", "generator", "generate")


class Bench(Config):
    """What is measured."""

    device: str = "cuda"
    """Where."""
    small: bool = False
    """Tiny models, to see that everything runs."""
    parts: tuple[str, ...] = ("cached", "pixels", "generator", "generate")
    """Training steps from cached tokens and from pixels, the generator's training step, its decoding."""
    gpu: str = "h200"
    """Whose floor is compared with (`cirray.pipelines.planning.config.GPUS`)."""
    batch: int = 128
    """Triplets of a retriever's step."""
    generator_batch: int = 64
    """Triplets of a generator's step."""
    steps: int = 10
    """Steps measured, after three that warm up."""
    pairs: int = 256
    """Pairs written in each row of the sweep."""
    loop_pairs: int = 4
    """Pairs that the straightforward loop writes."""
    tokens: int = 24
    """Tokens of every text: random weights would never end one."""
    sweep: tuple[int, ...] = (16, 64, 128, 256)
    """Rows decoded together."""
    beams: tuple[int, ...] = (5, 1)
    """Beams; 1 is greedy."""
    out: str = ""
    """File to which each figure is added as a line of JSON; empty: printed alone."""


@dataclass(frozen=True)
class Sizes:
    """The models' sizes."""

    vision: VisionTowerConfig
    qformer: dict[str, Any]
    embed: int
    language: LanguageModelConfig
    words: int


FULL = Sizes(
    VisionTowerConfig(image_size=224, patch_size=14, width=1408, layers=39, heads=16, intermediate=6144),
    QFormerConfig.blip2().to_dict(), 256,
    LanguageModelConfig(width=4096, layers=32, heads=32, intermediate=11008, positions=2048, initializer_range=0.02),
    30000,
)  # fmt: skip
SMALL = Sizes(
    VisionTowerConfig(image_size=32, patch_size=16, width=32, layers=2, heads=2, intermediate=64),
    QFormerConfig(width=32, layers=2, heads=2, queries=4, intermediate=64).to_dict(), 16,
    LanguageModelConfig(width=32, layers=2, heads=2, intermediate=64), 200,
)  # fmt: skip


class Features:
    """Random patch tokens by image id; a few images' worth of them, used again and again."""

    def __init__(self, sizes: Sizes) -> None:
        """Draw them."""
        count = (sizes.vision.image_size // sizes.vision.patch_size) ** 2 + 1
        self.tokens = np.random.default_rng(0).standard_normal((32, count, sizes.vision.width)).astype(np.float16)

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Tokens `[n, P, D]`."""
        return self.tokens[[int(name) % len(self.tokens) for name in ids]]

    def __contains__(self, image_id: object) -> bool:
        return True


def main() -> None:
    """Measure every part and print its table."""
    words = ["small=true" if word == "--small" else word for word in sys.argv[1:]]
    bench = load_config(Bench, None, overrides_of(words))
    if bench.small:
        tiny = {"batch": 8, "generator_batch": 4, "steps": 2, "pairs": 8, "loop_pairs": 2, "tokens": 6, "sweep": [4, 8]}
        bench = load_config(Bench, {**bench.to_dict(), **tiny}, [])
    sizes = SMALL if bench.small else FULL
    torch.backends.cuda.matmul.allow_tf32 = True
    _check_device(bench)
    say(f"{_device_name(bench)}; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}.")
    work: dict[str, Callable[[Bench, Sizes], None]] = {
        "cached": cached, "pixels": pixels, "generator": generator, "generate": generate,
    }  # fmt: skip
    for part in bench.parts:
        work[part](bench, sizes)
        _empty(bench)


def cached(bench: Bench, sizes: Sizes) -> None:
    """PTHA training steps from cached tokens."""
    with torch.device(bench.device):
        model = retriever(sizes)
    reading = partial(triplet_batch, bench, sizes, model, Features(sizes))
    name = f"PTHA step, cached tokens, batch {bench.batch}"
    train_row(bench, name, model, retriever_config(bench), reading(), reading=reading)


def pixels(bench: Bench, sizes: Sizes) -> None:
    """PTHA training steps from pixels: the frozen tower runs in every step."""
    with torch.device(bench.device):
        model, tower = retriever(sizes), vision(sizes)
    tower.model.to(torch.bfloat16)
    side = sizes.vision.image_size
    images = torch.randint(256, (2 * bench.batch, side, side, 3), dtype=torch.uint8, device=bench.device)
    batch = triplet_batch(bench, sizes, model, Features(sizes))

    @torch.no_grad()
    def encoded() -> RetrievalBatch:
        blocks = [tower(images[begin : begin + 64]) for begin in range(0, len(images), 64)]
        references, targets = torch.cat(blocks).chunk(2)
        return RetrievalBatch(**{**vars(batch), "reference_BPD": references, "target_BPD": targets})

    config = retriever_config(bench)
    train_row(bench, f"PTHA step, pixels, batch {bench.batch}", model, config, batch, encoded, count_weights(tower))


def generator(bench: Bench, sizes: Sizes) -> None:
    """MTG training steps, language model frozen in bf16."""
    with torch.device(bench.device):
        model = text_model(sizes)
    features = Features(sizes)
    rows = [Triplet(str(at), str(at), str(at + 1), " ".join(["w1"] * 12)) for at in range(bench.generator_batch)]
    config = LoopConfig(steps=100, batch=bench.generator_batch, precision="bf16")
    task = GeneratorTask(model, rows, features, config)
    batch = task.batch(rows).to(bench.device)
    name = f"MTG step, {sizes.language.layers} layers frozen, batch {bench.generator_batch}"
    train_row(bench, name, model, config, batch, loss=lambda now: task.loss(model, now, NoGather()).total)


def generate(bench: Bench, sizes: Sizes) -> None:
    """Texts of pairs: the sweep, against one pair at a time with all passes and transformers' own `generate`."""
    with torch.device(bench.device):
        model = text_model(sizes).eval()
    features, card = Features(sizes), GPUS[bench.gpu]
    say(f"\n| generation, {bench.tokens} tokens | pairs/s | tokens/s | of the floor | peak GiB | against the loop |")
    say("|---|---|---|---|---|---|")
    for beams in bench.beams:
        decoding = DecodingConfig(
            beams=beams, max_new_tokens=bench.tokens, min_new_tokens=bench.tokens, keep_unfinished=True,
            repetition_penalty=1.5,
        )  # fmt: skip
        how = f"{beams} beams" if beams > 1 else "greedy"
        seconds, equal = loop_seconds(bench, model, features, decoding)
        rates = f"{1 / seconds:.2f} | {bench.tokens / seconds:.1f}"
        share = floor_seconds(model, beams, bench.tokens, card) / seconds
        alone = {"pairs/s": 1 / seconds, "of the floor": share, "peak GiB": _peak(bench), "equal tokens": equal}
        note(bench, f"{how}, one pair at a time", alone)
        say(
            f"| {how}, one pair at a time | {rates} | {share:.0%} | {_peak(bench):.1f} | 1.0x; "
            f"{equal:.0%} of tokens as in a batch |"
        )
        for rows in bench.sweep:
            writer = TextWriter(model, decoding.model_copy(update={"batch": rows}), directions=("forward",))
            rate = bench.pairs / timed(bench, partial(write, writer, bench, features), 1)
            floor = floor_seconds(model, rows * beams, bench.tokens, card) / rows * rate
            found = {"pairs/s": rate, "tokens/s": rate * bench.tokens, "of the floor": floor, "peak GiB": _peak(bench)}
            note(bench, f"{how}, {rows} rows", {**found, "against the loop": rate * seconds})
            say(
                f"| {how}, {rows} rows | {rate:.1f} | {rate * bench.tokens:,.0f} | {floor:.0%} | {_peak(bench):.1f} | "
                f"{rate * seconds:.1f}x |"
            )


def note(bench: Bench, name: str, figures: Mapping[str, float]) -> None:
    """Add figures to the file, with the machine and the time; nothing without a file."""
    if not bench.out:
        return
    line = {"what": name, "device": _device_name(bench), "at": time.strftime("%Y-%m-%d %H:%M:%S"), **figures}
    with open(bench.out, "a", encoding="utf-8") as file:
        file.write(json.dumps({key: value if value == value else None for key, value in line.items()}) + "\n")


def write(writer: TextWriter, bench: Bench, features: Features) -> None:
    """Write all pairs' texts; every image in two pairs."""
    made = writer.generate([Pair(str(at), str(at), str(at + 1)) for at in range(bench.pairs)], features)
    # Random weights may write special tokens alone, which is an empty text; what counts is that all were tried.
    assert len(made) == bench.pairs


@torch.inference_mode()
def loop_seconds(
    bench: Bench, model: ModificationTextModel, features: Features, decoding: DecodingConfig
) -> tuple[float, float]:
    """Seconds a pair of the straightforward loop, and the share of its tokens that batched decoding writes too.

    The share is 1 in fp32; in bf16 sums of another batch size round otherwise, and random weights decide by a hair.
    """
    options = {
        "num_beams": decoding.beams, "do_sample": False, "max_new_tokens": bench.tokens, "min_new_tokens": bench.tokens,
        "repetition_penalty": decoding.repetition_penalty, "length_penalty": decoding.length_penalty,
        "pad_token_id": model.language.pad_id,
    }  # fmt: skip

    def prefix_of(rows: Sequence[int]) -> torch.Tensor:
        ids = [[str(at) for at in rows], [str(at + 1) for at in rows]]
        sides = [torch.from_numpy(features.get(side)).to(bench.device).float() for side in ids]
        return model.pair_prefix(*sides)

    def one(at: int) -> list[int]:
        prefix = prefix_of([at])
        mask = torch.ones(prefix.shape[:2], dtype=torch.int64, device=prefix.device)
        return list(model.lm.generate(inputs_embeds=prefix, attention_mask=mask, **options)[0].tolist())

    rows = range(bench.loop_pairs)
    written = [one(at) for at in rows]
    seconds = timed(bench, lambda: [one(at) for at in rows], 1) / bench.loop_pairs
    batched = decode(model.lm, prefix_of(rows), decoding, model.language.end_id)
    same = [a == b for ids, row in zip(written, batched, strict=True) for a, b in zip(ids, row.ids, strict=False)]
    return seconds, sum(same) / max(len(same), 1)


def floor_seconds(model: ModificationTextModel, rows: int, tokens: int, card: Gpu) -> float:
    """Least time of decoding a batch: every step reads the weights, or computes with them, whichever takes longer."""
    weights = sum(item.numel() for item in model.lm.parameters())
    read = sum(item.numel() * item.element_size() for item in model.lm.parameters()) / (card.bandwidth * 1e12)
    return tokens * max(read, 2.0 * weights * rows / (card.tflops * 1e12))


def train_row(
    bench: Bench, name: str, model: nn.Module, config: Any, batch: Any, encoded: Callable[[], Any] | None = None,
    frozen: Any = None, loss: Callable[[Any], torch.Tensor] | None = None, reading: Callable[[], Any] | None = None,
) -> None:  # fmt: skip
    """Measure steps of an engine and print one table; `reading` makes a batch from the features anew."""
    engine = TorchEngine(model.to(bench.device), config)
    engine.module.train()
    find = loss or (lambda now: retrieval_loss(cast(Retriever, model), now, config, NoGather()).total)

    def step(given: Any = None) -> None:
        now = encoded() if encoded else batch if given is None else given
        with autocast(engine.device, config):
            value = find(now)
        engine.backward(value)
        engine.step()

    for _ in range(3):
        step()
    seconds = timed(bench, step, bench.steps)
    peak = _peak(bench)
    with FlopCounterMode(display=False) as counter:
        step()
    card, flops = GPUS[bench.gpu], counter.get_total_flops()
    rows: dict[str, float] = {
        "samples/s": config.batch / seconds, "ms a step": 1e3 * seconds, "TFLOP/s": flops / seconds / 1e12,
        f"% of the floor at {card.tflops:g} TFLOP/s": 100 * flops / (card.tflops * 1e12) / seconds, "peak GiB": peak,
    }  # fmt: skip
    if reading is not None:
        rows["samples/s with rows read and moved"] = config.batch / timed(bench, lambda: step(reading()), bench.steps)
    if loss is None:
        extra = 0 if frozen is None else frozen.frozen_bytes
        rows["planned GiB"] = (estimate(bench, config) + extra) / GIB
    say(f"\n| {name} | |\n|---|---|")
    for label, value in rows.items():
        say(f"| {label} | {value:,.3f} |")
    note(bench, name, rows)


def estimate(bench: Bench, config: TrainingConfig) -> int:
    """Bytes that `cirray plan` counts for a retriever's step."""
    sizes = SMALL if bench.small else FULL
    with weightless():
        tokens = Tokens(Features(sizes).tokens.shape[1], sizes.vision.width)
        return count_retriever(retriever(sizes), config, tokens).total


def retriever(sizes: Sizes) -> QFormerRetriever:
    """SPRC's and PTHA's network with random weights."""
    words = build_tokenizer([f"w{at}" for at in range(sizes.words)])
    config = RetrieverConfig(qformer=sizes.qformer, embed_dim=sizes.embed, text_length=32)
    return QFormerRetriever(config, words, sizes.vision.width)


def vision(sizes: Sizes) -> VisionTower:
    """The frozen tower with random weights."""
    return build_vision_tower(sizes.vision, TransformConfig(size=sizes.vision.image_size))


def text_model(sizes: Sizes) -> ModificationTextModel:
    """MTG with random weights, the language model in bf16 on an accelerator."""
    language = build_language_model(sizes.language, build_word_tokenizer([f"w{at}" for at in range(sizes.words)]))
    if torch.empty(0).device.type != "cpu":
        torch.nn.Module.to(language.model, torch.bfloat16)
    passes = ("reference", "target", "difference")
    config = GeneratorConfig(qformer=ReaderConfig(**sizes.qformer), passes=passes, embed_language_model=False)
    return ModificationTextModel(config, language, sizes.vision.width)


def retriever_config(bench: Bench) -> TrainingConfig:
    """PTHA as published recipes train it."""
    return TrainingConfig(steps=100, batch=bench.batch, objective="ptha", precision="bf16", one_per_group=False)


def triplet_batch(bench: Bench, sizes: Sizes, model: QFormerRetriever, features: Features) -> RetrievalBatch:
    """One batch of random tokens and texts, read and moved to the device."""
    text, reverse = " ".join(["w1"] * 30), " ".join(["w2"] * 30)
    rows = [Triplet(str(at), str(at), str(at + 1), text, reverse) for at in range(bench.batch)]
    task = RetrievalTask(model, rows, features, retriever_config(bench))
    return task.batch(rows).to(bench.device)


def timed(bench: Bench, work: Callable[[], Any], times: int) -> float:
    """Seconds a call; memory's peak is counted from here."""
    with _counted(bench):
        begin = time.perf_counter()
        for _ in range(times):
            work()
        _wait(bench)
        return (time.perf_counter() - begin) / times


@contextmanager
def _counted(bench: Bench) -> Iterator[None]:
    _wait(bench)
    if bench.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    yield


def _check_device(bench: Bench) -> None:
    if bench.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {bench.device!r} is not there. Take another machine, or say --device cpu --small.")
    unknown = [part for part in bench.parts if part not in PARTS]
    if unknown:
        raise ConfigError(unknown_name("part", unknown[0], PARTS))
    if bench.gpu not in GPUS:
        raise ConfigError(unknown_name("gpu", bench.gpu, GPUS))


def _wait(bench: Bench) -> None:
    if bench.device.startswith("cuda"):
        torch.cuda.synchronize()


def _peak(bench: Bench) -> float:
    return torch.cuda.max_memory_allocated() / GIB if bench.device.startswith("cuda") else float("nan")


def _empty(bench: Bench) -> None:
    gc.collect()  # an engine and its model hold each other
    if bench.device.startswith("cuda"):
        torch.cuda.empty_cache()


def _device_name(bench: Bench) -> str:
    return torch.cuda.get_device_name() if bench.device.startswith("cuda") else "CPU, not a measurement of speed"


if __name__ == "__main__":
    sys.exit(guarded(main))
