"""Plans of runs that train nothing: embedding images, writing texts."""

from typing import Any

import torch

from cirray.core.errors import ConfigError
from cirray.generators.config import LmmConfig, MtgConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.models.outlines import weightless
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.inputs import RecipesBeside, image_count, pair_count, tokens_of, tower_of
from cirray.pipelines.planning.memory import cache_bytes, count_weights, feature_bytes, logit_bytes
from cirray.pipelines.planning.models import towers_behind, written_generator
from cirray.pipelines.planning.report import GIB, Line, PlanReport, size
from cirray.pipelines.planning.steps import Tokens
from cirray.pipelines.texts.config import GenerateRun
from cirray.training.tracing import Trace, trace_forward

_CACHED_IMAGES = 20_000
"""Number of images whose soft tokens `TextWriter` keeps on the device."""


def plan_embed(run: EmbedRun, plan: PlanConfig, beside: RecipesBeside) -> PlanReport:
    """Memory, time and disk of embedding images. Raises ConfigError: when the sizes of the tower cannot be known."""
    with weightless():
        tower, origin = tower_of(run.tower, beside)
        pixels = torch.zeros(run.batch, tower.image_size, tower.image_size, 3, dtype=torch.uint8)
        trace = trace_forward(lambda: tower(pixels), tower, pixels)
        weights = count_weights(tower)
    images, told = (plan.images, "plan.images") if plan.images else image_count(run.data)
    actors = run.pool.bounds[1]
    total = weights.frozen_bytes + trace.peak + pixels.numel()
    rate, source = plan.samples_per_second, "plan.samples_per_second"
    if rate is None:
        rate = actors * run.batch / plan.seconds(trace.flops, trace.written, trace.kernels, bf16=False)
        source = f"estimate: {plan.utilisation:.0%} of the products in tf32, memory traffic"
    disk = feature_bytes(images, tower.num_tokens, tower.width, run.shard_rows) if images else None
    sections = {
        "tower": (
            Line("frozen weights", weights.frozen, "count", origin),
            Line("patch tokens", f"{tower.num_tokens} x {tower.width}", "", f"{tower.image_size} px"),
        ),
        f"memory of one GPU of {actors}": (
            Line("weights", weights.frozen_bytes, "bytes", "fp32"),
            Line("activations at most", trace.peak, "bytes", f"{run.batch} images"),
            Line("all of it", total, "bytes", f"without plan.reserve_gib={plan.reserve_gib:g}"),
            Line("room", int(plan.card.memory_gib * GIB), "bytes", plan.gpu),
        ),
        "disk": (
            Line("features", disk, "bytes", f"{images:,} images ({told}), fp16" if images else "set plan.images"),
        ),
        "time": (
            Line("operations of an image", trace.flops / run.batch, "operations"),
            Line("images", rate, "per second", source),
            Line("all images", images / rate if images else None, "seconds", "if decoding keeps up"),
        ),
    }
    warnings = _fits(total, plan, f"batch={max(run.batch // 2, 1)}")
    if disk and plan.disk_gib and disk > plan.disk_gib * GIB:
        warnings += (
            f"The features take {size(disk)} of {plan.disk_gib:g} GiB; leave features=[] in the training to encode "
            "images there, or embed fewer parts (parts).",
        )
    return PlanReport("plan of embedding images", sections, warnings)


def plan_generate(run: GenerateRun, plan: PlanConfig, beside: RecipesBeside) -> PlanReport:
    """Memory and time of writing texts.

    Raises ConfigError when the sizes of the generator cannot be known, or it has no network.
    """
    chosen, ways = run.generator.settings, 2 if run.reverse_texts else 1
    if isinstance(chosen, LmmConfig):
        return plan_lmm(run, plan, beside)
    if not isinstance(chosen, MtgConfig):
        raise ConfigError(f"The generator {run.generator.kind!r} has no network: no accelerator and no plan is needed.")
    decoding, tokens = chosen.decoding, tokens_of(run.features, towers_behind(chosen.source, beside), plan, beside)
    with weightless():
        model, origin = written_generator(chosen.source, chosen.language_dtype, tokens, plan, beside)
        prefix, trace = trace_prefix(model, tokens, decoding.batch)
    settings, element = model.lm.config, int(model.lm.dtype.itemsize)
    rows = decoding.batch * decoding.beams
    cache = cache_bytes(settings, rows, prefix, decoding.max_new_tokens - 1, element)
    logits = logit_bytes(int(settings.vocab_size), decoding)
    weights = count_weights(model)
    kept = weights.trained_bytes + weights.frozen_bytes
    pairs = plan.rows or pair_count(run.pairs, beside)
    images = min(plan.images or (2 * pairs if pairs else _CACHED_IMAGES), _CACHED_IMAGES)
    soft = images * model.config.qformer.queries * model.language.width * model.projection.weight.element_size()
    # reordering copies the cache layer by layer: one layer more than its size
    steps = cache + cache // max(int(settings.num_hidden_layers), 1) + logits
    total = kept + soft + max(trace.peak, steps)
    step_s = _step_seconds(plan, kept, cache, weights.frozen + weights.trained, rows, trace.kernels)
    read_s = plan.seconds(trace.flops, trace.written, trace.kernels, element == 2)
    batch_s = read_s + plan.answer_tokens * step_s
    rate, source = decoding.batch / ways / batch_s * run.pool.bounds[1], "estimate: prompt pass, then steps of decoding"
    if plan.samples_per_second:
        rate, source = plan.samples_per_second, "plan.samples_per_second"
    sections = {
        "generator": (
            Line("weights", weights.trained + weights.frozen, "count", origin),
            Line("prompt", prefix, "count", "tokens: queries and instruction"),
            Line("patch tokens", f"{tokens.count} x {tokens.width}", "", tokens.origin),
        ),
        f"memory of one GPU of {run.pool.bounds[1]}": (
            Line("weights", kept, "bytes", chosen.language_dtype),
            Line("soft tokens of images", soft, "bytes", f"{images:,} kept"),
            Line("prompt pass at most", trace.peak, "bytes", f"{decoding.batch} rows"),
            Line("key-value cache", cache, "bytes", f"{decoding.batch} rows x {decoding.beams} beams"),
            Line("scores over the words", logits, "bytes"),
            Line("all of it", total, "bytes", f"without plan.reserve_gib={plan.reserve_gib:g}"),
            Line("room", int(plan.card.memory_gib * GIB), "bytes", plan.gpu),
        ),
        "time": (
            Line("a step of decoding", step_s, "seconds", f"{rows} rows; weights and cache are read once"),
            Line("tokens", rate * ways * plan.answer_tokens, "per second", "of the kept texts"),
            Line("pairs", rate, "per second", source),
            Line("pairs to write", pairs, "count", "" if pairs else "set plan.rows"),
            Line("all pairs", pairs / rate if pairs else None, "seconds"),
        ),
    }
    return PlanReport("plan of writing texts", sections, _fits(total, plan, *_remedies(chosen)))


def trace_prefix(model: ModificationTextModel, tokens: Tokens, rows: int) -> tuple[int, Trace]:
    """Length of the prompt, and the trace of reading it: Q-Former passes and the language model's first step."""
    model.eval().requires_grad_(False)
    reference_BPD, target_BPD = (torch.zeros(rows, tokens.count, tokens.width) for _ in range(2))
    lengths: list[int] = []

    def forward() -> Any:
        prefix_BLE = model.pair_prefix(reference_BPD, target_BPD)
        lengths.append(int(prefix_BLE.shape[1]))
        if model.language.encodes:
            start = torch.zeros(rows, 1, dtype=torch.int64)
            return model.lm(inputs_embeds=prefix_BLE, decoder_input_ids=start, use_cache=True)
        return model.lm(inputs_embeds=prefix_BLE, use_cache=True, logits_to_keep=1)

    trace = trace_forward(forward, model, (reference_BPD, target_BPD))
    return lengths[0], trace


def _remedies(chosen: MtgConfig) -> list[str]:
    wider = ["generator.settings.language_dtype=bfloat16"] if chosen.language_dtype == "float32" else []
    return [*wider, f"generator.settings.decoding.batch={max(chosen.decoding.batch // 2, 1)}"]


def _step_seconds(plan: PlanConfig, weights: int, cache: int, parameters: int, rows: int, kernels: int) -> float:
    """Time of one decoding step: reading weights and cache, computing, or starting kernels, whichever is longest."""
    traffic = (weights + cache) / (plan.card.bandwidth * 1e12 * plan.traffic)
    return max(traffic, plan.seconds(2.0 * parameters * rows, 0, kernels))


def _fits(total: int, plan: PlanConfig, *remedies: str) -> tuple[str, ...]:
    room = (plan.card.memory_gib - plan.reserve_gib) * GIB
    if total <= room:
        return ()
    return (f"A pass needs {size(total)} of {size(room)} on one {plan.gpu}; change {', or '.join(remedies)}.",)


_PATCH = 28
"""Side in pixels of what one token shows (Qwen2-VL and its successors)."""
_CAPTION, _FRAME = 30, 30
"""Tokens of a caption, and of an answer beside its texts (assumed)."""
_LETTERS = 4
"""Letters of a token of English (assumed)."""


def plan_lmm(run: GenerateRun, plan: PlanConfig, beside: RecipesBeside) -> PlanReport:
    """Tokens, time and price of writing texts by an engine."""
    chosen = run.generator.settings
    assert isinstance(chosen, LmmConfig)
    pairs = plan.rows or pair_count(run.pairs, beside)
    seen = plan.picture_tokens or (round(chosen.side / _PATCH) ** 2 if chosen.data else _CAPTION)
    read = 2 * seen + len(chosen.template) // _LETTERS
    written = chosen.texts * ((2 if run.reverse_texts else 1) * plan.answer_tokens + _FRAME)
    rate, source = plan.samples_per_second, "plan.samples_per_second"
    if rate is None and plan.tokens_per_second:
        rate, source = plan.tokens_per_second / written, "plan.tokens_per_second"
    cost = None if plan.price is None else (read * plan.price[0] + written * plan.price[1]) / 1e6
    sections = {
        "a pair": (
            Line("tokens read", read, "count", f"two {'pictures' if chosen.data else 'captions'} of {seen}, question"),
            Line("tokens written", written, "count", f"{plan.answer_tokens} a text, and JSON around them"),
            Line("price", cost, "", "of plan.price, read and written" if cost is not None else "set plan.price"),
        ),
        "all pairs": (
            Line("pairs to write", pairs, "count", "" if pairs else "set plan.rows"),
            Line("pairs", rate, "per second", source if rate else "set plan.tokens_per_second, of all servers"),
            Line("time", pairs / rate if pairs and rate else None, "seconds"),
            Line("tokens", pairs * (read + written) if pairs else None, "count"),
            Line("cost", pairs * cost if pairs and cost is not None else None, "", "without questions asked again"),
        ),
    }
    return PlanReport("plan of writing texts by a large model", sections)
