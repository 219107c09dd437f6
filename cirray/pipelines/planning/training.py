"""Plans of training runs: retriever and generator."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from cirray.losses.sums import tile_of
from cirray.models.base import Retriever
from cirray.models.outlines import weightless
from cirray.models.towers.hf_blip2 import VisionTower
from cirray.pipelines.planning.config import CPU, PlanConfig
from cirray.pipelines.planning.inputs import (
    RecipesBeside,
    images_of,
    labelled_rows,
    pairs_behind,
    tokens_of,
    tower_of,
    triplet_count,
)
from cirray.pipelines.planning.memory import count_weights, feature_bytes, training_states
from cirray.pipelines.planning.models import generator_of, trained_retriever
from cirray.pipelines.planning.report import GIB, Line, PlanReport, size
from cirray.pipelines.planning.steps import Counted, Tokens, count_alignment, count_generator, count_retriever
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.training.config import TrainRun
from cirray.training.config import LoopConfig, PiecesConfig, TrainingConfig
from cirray.training.terms.config import MatchingConfig
from cirray.training.tracing import trace_forward

_SHARD_ROWS = 512
_LIVE_BATCH = 64
"""Images that `LiveFeatures` encodes at once."""


def plan_retriever(run: TrainRun, plan: PlanConfig, beside: RecipesBeside) -> PlanReport:
    """Memory, disk traffic and time of a retriever's training.

    Raises ConfigError when the sizes of a named source cannot be known.
    """
    tokens = tokens_of(run.features, run.towers, plan, beside)
    world = run.ray.num_workers if run.ray.enabled else 1
    with weightless():
        model, origin = trained_retriever(run, plan, tokens, beside)
        counted = count_retriever(model, run.training, tokens, world, plan.text_tokens)
        if not run.features:
            counted = _with_tower(counted, tower_of(run.towers, beside)[0])
    images, source = (plan.images, "plan.images") if plan.images else images_of(run.data)
    counted = replace(counted, bank=_kept_bytes(run, model, images, world))
    rows, told = _training_rows(run, plan, beside)
    candidates = run.training.batch * (2 if run.training.negatives == "batch_images" else 1)
    vectors = 1 if model.config.similarity == "dot" else model.config.qformer.queries
    high, wide = tile_of(-(-run.training.batch // world), candidates, vectors, run.training.chunk)
    contrast = Line(
        "scores at once", high * wide * vectors * 4, "bytes",
        f"{high} queries x {wide} of {candidates} images x {vectors} vectors, part of the activations",
    )  # fmt: skip
    kept = _disk_line(run, tokens, images, source)
    frame = _Frame(f"retriever, objective {run.training.objective}", origin, tokens, rows, told, kept)
    warnings = fit_warnings(counted, plan, _retriever_remedies(run, counted))
    return _report(frame, counted, plan, [contrast], warnings)


def plan_generator(run: GeneratorRun, plan: PlanConfig, beside: RecipesBeside) -> PlanReport:
    """Memory and time of a generator's training on labelled triplets, and memory of the alignment before it.

    Raises ConfigError when the sizes of a named source cannot be known.
    """
    tokens = tokens_of(run.features, run.towers, plan, beside)
    world = run.ray.num_workers if run.ray and run.ray.enabled else 1
    with weightless():
        model, origin = generator_of(run, plan, tokens, beside)
        card = plan.gpu != CPU
        aligned = None
        if run.alignment != "none":
            written = plan.answer_tokens if run.alignment in ("auto", "captions") else 0
            aligned = count_alignment(model, run.alignment_training, tokens, written, world, card)
        counted = count_generator(model, run.training, tokens, plan.answer_tokens, world, card)
    rows, told = (plan.rows, "plan.rows") if plan.rows else labelled_rows(run.data)
    images, source = (plan.images, "plan.images") if plan.images else images_of(run.data)
    kept = _disk_line(run, tokens, images, source)
    frame = _Frame(f"generator, language model {model.config.tuning}", origin, tokens, run.labels or rows, told, kept)
    language = sum(item.numel() * item.element_size() for item in model.lm.parameters())
    extra = [Line("language model", language, "bytes", f"{run.language_dtype}, part of the weights")]
    remedies = ["training.precision=bf16"] if run.training.precision == "fp32" else []
    if run.language_dtype == "float32" and model.config.tuning != "full":
        remedies.insert(0, "language_dtype=bfloat16 (a frozen language model needs no fp32)")
    warnings = fit_warnings(counted, plan, remedies)
    if aligned is not None:
        through = "captions through the language model" if run.alignment in ("auto", "captions") else "images"
        note = f"{aligned.rows} rows of {through} at once"
        extra.append(Line("alignment before it", aligned.total, "bytes", note))
        warnings += tuple(
            f"Alignment: {text.replace('training.', 'alignment_training.')}"
            for text in fit_warnings(aligned, plan, remedies)
        )
    return _report(frame, counted, plan, extra, warnings)


def fit_warnings(counted: Counted, plan: PlanConfig, remedies: list[str]) -> tuple[str, ...]:
    """A warning that names the settings to change, when a step needs more than a card has."""
    room = (plan.card.memory_gib - plan.reserve_gib) * GIB
    if counted.total <= room:
        return ()
    fixed = counted.states.total + counted.tower + counted.bank + counted.vectors
    per_row = (counted.trace.peak + counted.batch_bytes) / counted.rows
    fitting = int(0.95 * (room - fixed) / per_row) if room > fixed else 0
    options = [*remedies]
    if fitting and parts_allowed(counted.loop):
        options.append(f"training.pieces={-(-counted.rows * counted.pieces // fitting)} (the batch in pieces)")
    if fitting:
        options.append(f"training.batch={_round(fitting * counted.world * counted.pieces)} (about what fits)")
    if fixed > room and counted.loop.engine != "deepspeed":
        options.append(f"training.engine=deepspeed training.zero_stage={2 if counted.bank else 3} over more workers")
    need = f"A step needs {size(counted.total)} of {size(room)} on one {plan.gpu}"
    return (f"{need}; change {', or '.join(options) or 'the card (plan.gpu)'}.",)


@dataclass(frozen=True)
class _Frame:
    title: str
    origin: str
    tokens: Tokens
    rows: int | None
    told: str
    disk: Line


def _report(
    frame: _Frame, counted: Counted, plan: PlanConfig, extra: list[Line], warnings: tuple[str, ...]
) -> PlanReport:
    loop, weights, states = counted.loop, counted.weights, counted.states
    stage = f"ZeRO {loop.zero_stage}" if loop.engine == "deepspeed" else "every GPU holds all of it"
    bank = [Line("negative bank", counted.bank, "bytes", "all training images, encoded once")] if counted.bank else []
    live = [Line("vision tower", counted.tower, "bytes", "images are encoded while training")] if counted.tower else []
    note = f"of the whole batch, which goes through the model in {counted.pieces} pieces"
    vectors = [Line("vectors", counted.vectors, "bytes", note)] if counted.vectors else []
    sections = {
        "model": (
            Line("trained weights", weights.trained, "count", frame.origin),
            Line("frozen weights", weights.frozen, "count"),
            Line("patch tokens", f"{frame.tokens.count} x {frame.tokens.width}", "", frame.tokens.origin),
        ),
        f"memory of one GPU of {counted.world}": (
            Line("weights", states.weights, "bytes", stage),
            Line("gradients", states.gradients, "bytes"),
            Line("optimiser", states.optimizer, "bytes", f"and {size(states.host)} of the host" if states.host else ""),
            Line("activations saved", counted.trace.saved, "bytes", f"{counted.rows} rows, {loop.precision}"),
            Line("activations at most", counted.trace.peak, "bytes", "saved ones, temporaries, gradients as they come"),
            Line("batch", counted.batch_bytes, "bytes", "patch tokens of references and targets"),
            *live,
            *bank,
            *vectors,
            Line("all of it", counted.total, "bytes", f"without plan.reserve_gib={plan.reserve_gib:g}"),
            Line("room", int(plan.card.memory_gib * GIB), "bytes", plan.gpu),
            *extra,
        ),
        f"weights, gradients and optimiser of one GPU of {counted.world}, by ZeRO stage": stage_lines(counted),
        "disk": (frame.disk,),
        "time": _time_lines(frame, counted, plan),
    }  # fmt: skip
    return PlanReport(f"plan of {frame.title}", sections, warnings)


def stage_lines(counted: Counted) -> tuple[Line, ...]:
    """Memory of the states under the torch engine and every ZeRO stage, the run's own marked."""
    loop = counted.loop
    lines: list[Line] = []
    own = loop.zero_stage if loop.engine == "deepspeed" else 0
    for stage in range(4):
        engine = loop.model_copy(update={"engine": "deepspeed" if stage else "torch", "zero_stage": stage})
        states = training_states(counted.weights, engine, counted.world)
        name = f"ZeRO {stage}" if stage else "engine torch"
        host = f"and {size(states.host)} of the host" if states.host else ""
        note = ", ".join(text for text in ("this run" if stage == own else "", host) if text)
        lines.append(Line(name, states.total, "bytes", note))
    return tuple(lines)


def _kept_bytes(run: TrainRun, model: Retriever, images: int | None, world: int) -> int:
    """What the loss terms keep on one GPU, a negative bank above all."""
    vectors = 1 if model.config.similarity == "dot" else model.config.qformer.queries
    numbers = vectors * model.config.embed_dim
    return sum(term.kept_bytes(images or 0, numbers, world) for term in run.training.active_terms.values())


def _disk_line(run: TrainRun | GeneratorRun, tokens: Tokens, images: int | None, source: str) -> Line:
    """Size of the run's features on disk."""
    if not run.features or not images:
        return Line("features", None, "bytes", "set plan.images" if run.features else "images are encoded in the run")
    disk = feature_bytes(images, tokens.count, tokens.width, _SHARD_ROWS)
    return Line("features", disk, "bytes", f"{images:,} images ({source}), fp16")


def _time_lines(frame: _Frame, counted: Counted, plan: PlanConfig) -> tuple[Line, ...]:
    loop = counted.loop
    rate, origin = plan.samples_per_second, "plan.samples_per_second"
    if rate is None:
        trace = counted.trace
        rate = counted.rows * counted.world / plan.seconds(trace.flops, trace.written, trace.kernels, counted.bf16)
        origin = f"estimate: {plan.utilisation:.0%} of the products, memory traffic, {trace.kernels:,} kernels a step"
    samples, flops = loop.steps * loop.batch, counted.trace.flops * counted.pieces
    read = rate * counted.batch_bytes / counted.rows
    epochs, seen = None, "rows are not known; set plan.rows"
    if frame.rows:
        epochs, seen = samples / frame.rows, f"of {frame.rows:,} rows ({frame.told})"
    return (
        Line("steps", loop.steps, "count", f"of {loop.batch} rows over all GPUs"),
        Line("epochs", epochs, "count", seen),
        Line("operations of a step", flops, "operations", "one GPU, forward and backward"),
        Line("samples", rate, "per second", origin),
        Line("patch tokens read", read, "bytes", "a second, from the tower" if counted.tower else "a second, cached"),
        Line("all steps", samples / rate, "seconds", "without validation and checkpoints"),
    )


def _with_tower(counted: Counted, tower: VisionTower) -> Counted:
    """Add the frozen tower that encodes each batch's images: weights, pass, operations."""
    pixels = torch.zeros(_LIVE_BATCH, tower.image_size, tower.image_size, 3, dtype=torch.uint8)
    live = trace_forward(lambda: tower(pixels), tower, pixels)
    flops = counted.trace.flops + live.flops * 2 * counted.rows // _LIVE_BATCH
    passes = 2 * counted.rows / _LIVE_BATCH
    written = counted.trace.written + int(live.written * passes)
    kernels = counted.trace.kernels + int(live.kernels * passes)
    trace = replace(counted.trace, flops=flops, written=written, kernels=kernels)
    return replace(counted, trace=trace, tower=count_weights(tower).frozen_bytes + live.peak)


def _retriever_remedies(run: TrainRun, counted: Counted) -> list[str]:
    found, training = [], run.training
    activations = counted.trace.peak > counted.states.total
    if activations and not getattr(run.encoder.settings, "gradient_checkpointing", True):
        found.append("encoder.settings.gradient_checkpointing=true")
    if training.precision == "fp32":
        found.append("training.precision=bf16")
    if not activations and counted.world > 1 and (training.engine != "deepspeed" or training.zero_stage < 3):
        found.append("training.engine=deepspeed training.zero_stage=3")
    return found


def _training_rows(run: TrainRun, plan: PlanConfig, beside: RecipesBeside) -> tuple[int | None, str]:
    if plan.rows:
        return plan.rows, "plan.rows"
    drawn = run.training.pair_texts == "drawn"  # all texts of a pair are one row
    pairs = {pairs_behind(uri, beside) if drawn else uri: triplet_count(uri, beside) for uri in run.triplets}
    generated = list(pairs.values())
    labelled, told = (0, "none") if run.labels == 0 else labelled_rows(run.data)
    counts: list[Any] = [*generated, min(labelled, run.labels) if labelled and run.labels else labelled]
    if any(count is None for count in counts):
        return None, "unknown"
    of_recipes = "at most, of the triplets' recipes or artifacts"
    return sum(counts) or None, told if not generated else of_recipes if run.labels == 0 else f"{told}, {of_recipes}"


def parts_allowed(loop: LoopConfig) -> bool:
    """Whether a batch may go through the model in pieces."""
    terms = loop.active_terms.values() if isinstance(loop, TrainingConfig) else ()
    return isinstance(loop, PiecesConfig) and not any(isinstance(term, MatchingConfig) for term in terms)


def _round(rows: int) -> int:
    """A usual batch size: a multiple of 8, or any number below 8."""
    return rows // 8 * 8 if rows >= 8 else max(rows, 1)
