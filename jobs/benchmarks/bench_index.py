"""Indexes over token vectors: the NumPy twin, FAISS flat (exact, certain), pooled candidates, and inverted files.

    python jobs/benchmarks/bench_index.py [images=10000] [tokens=32] [width=256] [queries=50]
    python jobs/benchmarks/bench_index.py images=100000 tokens=1 target_recall=0.99    what `cirray index` would choose

Vectors are synthetic: groups of images that share a centre, as near-duplicates in a real gallery do. Recall is the
share of the twin's top k that an index finds.
"""

import sys
import time

import numpy as np
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.config import Config, load_config, validate
from cirray.core.log import say
from cirray.index.choice import chosen, measured
from cirray.index.config import FaissConfig
from cirray.index.exact import ExactIndex
from cirray.index.faiss_index import build_faiss, limit_faiss_threads, over
from cirray.index.protocol import VectorIndex
from cirray.pipelines.search.choice import table


class BenchConfig(Config):
    """What is measured."""

    images: int = Field(10_000, ge=10)
    tokens: int = Field(32, ge=1)
    width: int = Field(256, ge=2)
    queries: int = Field(50, ge=1)
    k: int = Field(10, ge=1)
    spread: float = Field(0.5, gt=0)
    """Noise around a group's centre; small values make near-duplicates."""
    threads: int = Field(1, ge=1)
    seed: int = 0
    target_recall: float = Field(0.0, ge=0, le=1)
    """Measure the kinds of which `cirray index --target-recall` chooses, in place of `variants`; 0: the variants."""
    variants: tuple[str, ...] = ("Flat", "pooled Flat", "IVF256,Flat nprobe=16", "IVF256,SQ8 nprobe=16")


def vectors(config: BenchConfig) -> tuple[np.ndarray, np.ndarray]:
    """Gallery tokens [N, Q, D] (fp16) and queries [B, D], all normalised."""
    rng = np.random.default_rng(config.seed)
    centres = rng.normal(size=(max(1, config.images // 8), config.tokens, config.width)).astype(np.float32)
    tokens = centres[np.arange(config.images) % len(centres)]
    tokens += config.spread * rng.normal(size=tokens.shape).astype(np.float32)
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    queries = tokens[rng.integers(0, config.images, config.queries), 0] + rng.normal(
        size=(config.queries, config.width)
    ) * (0.7 / np.sqrt(config.width))
    return tokens.astype(np.float16), (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)


def build(variant: str, ids: list[str], tokens: np.ndarray) -> VectorIndex:
    """An index from `[pooled ]FACTORY[ PARAMETERS]`."""
    factory, _, parameters = variant.removeprefix("pooled ").partition(" ")
    strategy = "pooled_rerank" if variant.startswith("pooled ") else "exact_tokens"
    config = validate(FaissConfig, {"factory": factory, "strategy": strategy, "search_parameters": parameters})
    return over(ids, tokens, build_faiss(tokens, config), config)


def timed(index: VectorIndex, queries: np.ndarray, k: int) -> tuple[list[tuple[str, ...]], float, float]:
    """Answers, milliseconds per query one at a time, and per query in one batch."""
    index.search(queries[:1], k)
    begin = time.perf_counter()
    found = [index.search(query[None], k)[0][0] for query in queries]
    single = time.perf_counter() - begin
    begin = time.perf_counter()
    index.search(queries, k)
    return found, 1000 * single / len(queries), 1000 * (time.perf_counter() - begin) / len(queries)


def measure(config: BenchConfig) -> None:
    """Print one line per index."""
    limit_faiss_threads(config.threads)
    tokens, queries = vectors(config)
    ids = [f"{row:09d}" for row in range(config.images)]
    say(f"{machine()}; {config.threads} threads")
    say(f"{config.images:,} images x {config.tokens} tokens x {config.width}, top {config.k}")
    if config.target_recall:
        kinds = measured(tokens, config.target_recall, config.queries, config.seed)
        return say(table(kinds, chosen(kinds, config.target_recall)))
    say("| index | build s | ms/query | ms/query in a batch | recall | same as twin |")
    say("|---|---|---|---|---|---|")
    truth, single, batch = timed(ExactIndex(ids, tokens), queries, config.k)
    say(f"| NumPy twin | 0 | {single:.1f} | {batch:.1f} | 1.000 | yes |")
    for variant in config.variants:
        begin = time.perf_counter()
        index = build(variant, ids, tokens)
        seconds = time.perf_counter() - begin
        found, single, batch = timed(index, queries, config.k)
        hits = sum(len(set(a) & set(b)) for a, b in zip(found, truth, strict=True))
        same = "yes" if found == truth else "no"
        recall = hits / (config.k * len(queries))
        say(f"| {variant} | {seconds:.1f} | {single:.2f} | {batch:.2f} | {recall:.3f} | {same} |")


def main() -> int:
    """Entry point."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    return guarded(lambda: measure(config))


if __name__ == "__main__":
    sys.exit(main())
