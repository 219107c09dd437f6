"""One training step, traced on the real network without weights. Needs only torch and transformers."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from cirray.generators.mtg import ModificationTextModel
from cirray.generators.trainable import AnswerLoss, Answers
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch, TextBatch, Wanted
from cirray.models.dual import DualEncoderRetriever
from cirray.pipelines.planning.memory import States, Weights, count_weights, training_states
from cirray.training.config import LoopConfig, PiecesConfig, TrainingConfig
from cirray.training.generation import AlignmentBatch, AlignmentPass
from cirray.training.halves import Halves
from cirray.training.objectives import retrieval_loss, wanted_outputs
from cirray.training.tracing import Loss, Trace, trace_step


@dataclass(frozen=True)
class Tokens:
    """Patch tokens of an image, and the source of the numbers."""

    count: int
    width: int
    origin: str = ""


@dataclass(frozen=True)
class Counted:
    """Parts of a step on one GPU.

    If any: `tower` is the vision tower beside the model, `bank` the images encoded before the first step, `vectors`
    what is kept of a whole batch while it goes through the model in pieces.
    """

    weights: Weights
    states: States
    trace: Trace
    loop: LoopConfig
    world: int
    batch_bytes: int
    tower: int = 0
    bank: int = 0
    vectors: int = 0

    @property
    def pieces(self) -> int:
        """Pieces that a batch goes through the model in."""
        return pieces_of(self.loop)

    @property
    def bf16(self) -> bool:
        """Whether the forward pass runs under autocast."""
        return self.loop.bf16

    @property
    def rows(self) -> int:
        """Rows that are in one GPU's model at once."""
        return rows_at_once(self.loop, self.world)

    @property
    def total(self) -> int:
        """Bytes of a step on one GPU, without the reserve."""
        return self.states.total + self.trace.peak + self.batch_bytes + self.tower + self.bank + self.vectors


def rows_at_once(loop: LoopConfig, world: int) -> int:
    """Rows of one GPU's batch, or of a piece of it."""
    return max(-(-loop.batch // world // pieces_of(loop)), 1)


def pieces_of(loop: LoopConfig) -> int:
    """Pieces that a batch goes through the model in."""
    return loop.pieces if isinstance(loop, PiecesConfig) else 1


class Ranks:
    """A collective in which other ranks' rows have this rank's shapes."""

    rank = 0

    def __init__(self, world: int) -> None:
        """Take the number of ranks."""
        self.world = world

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """As many rows as on all ranks."""
        return tensor if self.world == 1 else torch.cat([tensor, *[tensor.detach()] * (self.world - 1)])

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """A value of the same shape."""
        return value.detach() * self.world

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        """A value of the same shape."""
        return value.detach()


def count_retriever(
    model: Retriever, config: TrainingConfig, tokens: Tokens, world: int = 1, text_tokens: int | None = None
) -> Counted:
    """Trace a retriever's step, or a piece of it; called under `weightless`."""
    checked, rows = without_data(config), rows_at_once(config, world)
    batch = retrieval_batch(model, checked, tokens, rows, text_tokens)
    model.train()
    trace = _traced(lambda: retrieval_loss(model, batch, checked, Ranks(world)).total, model, batch, config)
    weights = count_weights(model)
    patches = 2 * batch.reference_BPD.numel() * batch.reference_BPD.element_size()
    counted = Counted(weights, training_states(weights, config, world), trace, config, world, patches)
    return counted if config.pieces == 1 else _with_vectors(counted, model, batch, wanted_outputs(checked))


def _with_vectors(counted: Counted, model: Retriever, batch: RetrievalBatch, wanted: Wanted) -> Counted:
    """A piece's step as gradient caching takes it: a second forward pass (a third of a step), and the whole batch's
    vectors. These are there with their gradients; candidates once more, gathered into one, and again with gradients.
    """
    with torch.no_grad():
        output = model(batch, wanted)
    share = -(-counted.loop.batch // counted.world) / counted.rows
    own = sum(tensor.numel() * tensor.element_size() for tensor in output.tensors() if tensor.ndim) * share
    sides = [item for item in (output.target_BQD, output.reference_BQD) if item is not None]
    candidates = sum(item.numel() * item.element_size() for item in sides) * share * counted.world
    # the contrast: one product forward, once more backward, and two for its gradients, of two operations each
    once = counted.trace
    flops = once.flops * 4 // 3 + int(8 * counted.rows * candidates / 4)
    trace = replace(once, flops=flops, kernels=once.kernels * 4 // 3, written=once.written * 4 // 3)
    return replace(counted, trace=trace, vectors=int(2 * own + 2 * candidates))


def without_data(config: TrainingConfig) -> TrainingConfig:
    """The objective with in-batch contrast in place of terms that encode images before the first step.

    Nor are missing reverse texts looked up, as there is no data.
    """
    terms = {name: settings.without_data() for name, settings in config.active_terms.items()}
    left_out = any(not settings.weight for settings in terms.values())
    in_batch = TrainingConfig().terms if left_out else {}
    return config.model_copy(update={"terms": {**in_batch, **terms}})


def retrieval_batch(
    model: Retriever, config: TrainingConfig, tokens: Tokens, rows: int, text_tokens: int | None = None
) -> RetrievalBatch:
    """A batch with training's shapes and texts of full length."""
    length = text_tokens or _text_length(model)
    reverse = wanted_outputs(config).reverse
    return RetrievalBatch(
        reference_BPD=torch.zeros(rows, tokens.count, tokens.width, dtype=torch.float16),
        target_BPD=torch.zeros(rows, tokens.count, tokens.width, dtype=torch.float16),
        text=_texts(rows, length), reference_key_B=torch.arange(rows), target_key_B=torch.arange(rows) + rows,
        weight_B=torch.ones(rows), reverse=_texts(rows, length) if reverse else None,
        reverse_mask_B=torch.ones(rows) if reverse else None,
    )  # fmt: skip


def count_generator(
    model: ModificationTextModel, config: LoopConfig, tokens: Tokens, answer: int, world: int = 1, gpu: bool = True
) -> Counted:
    """Trace a generator's step on one of `world` GPUs; called under `weightless`."""
    inputs = generator_batch(rows_at_once(config, world), tokens, answer)
    model.enter("answers")
    model.train()

    def loss() -> torch.Tensor:
        found = model(*inputs)
        return found.total / found.tokens

    trace = _traced(loss, model, inputs, config, gpu)
    weights = count_weights(model)
    patches = 2 * inputs[0].numel() * inputs[0].element_size()
    return Counted(weights, training_states(weights, config, world), trace, config, world, patches)


def count_alignment(
    model: ModificationTextModel, config: PiecesConfig, tokens: Tokens, answer: int, world: int = 1, gpu: bool = True
) -> Counted:
    """Trace a step of the alignment; called under `weightless`. `answer`: tokens of a caption through the language
    model; 0: soft tokens are drawn to words without it, and no piece of a batch goes alone.
    """
    config = config if answer else config.model_copy(update={"pieces": 1})
    first, second, answers = generator_batch(rows_at_once(config, world), tokens, answer or 1)
    pair = (None, None) if answer or "difference" not in model.config.passes else (first, second)
    model.enter("alignment")
    batch = AlignmentBatch(first, answers=answers if answer else None, reference_BPD=pair[0], target_BPD=pair[1])
    wrapped = AlignmentPass(model).train()

    def loss() -> torch.Tensor:
        found = wrapped(batch)
        if isinstance(found, AnswerLoss):
            return found.total / found.tokens
        soft = [found.image_BQE, *([] if found.difference_BQE is None else [found.difference_BQE])]
        return torch.stack([item.square().mean() for item in soft]).sum()

    trace = _traced(loss, model, batch, config, gpu)
    weights = count_weights(model)
    size = first.numel() * first.element_size()
    return Counted(weights, training_states(weights, config, world), trace, config, world, size)


def generator_batch(rows: int, tokens: Tokens, answer: int) -> tuple[torch.Tensor, torch.Tensor, Answers]:
    """Reference and target patches and answers with training's shapes."""
    sides = [torch.zeros(rows, tokens.count, tokens.width) for _ in range(2)]
    ones = torch.ones(rows, answer, dtype=torch.int64)
    answers = Answers(ones, ones.bool(), torch.arange(rows * answer))
    return sides[0], sides[1], answers


def _traced(loss: Loss, model: nn.Module, inputs: Any, config: LoopConfig, gpu: bool = True) -> Trace:
    """A step's trace, with the model's weights as the engine has them from then on."""
    if config.precision == "bf16_weights":
        Halves(model)
    return trace_step(loss, model, inputs, config.bf16, gpu)


def _texts(rows: int, length: int) -> TextBatch:
    return TextBatch(torch.ones(rows, length, dtype=torch.int64), torch.ones(rows, length, dtype=torch.int64))


def _text_length(model: Retriever) -> int:
    if not isinstance(model, DualEncoderRetriever):
        return model.config.text_length
    inner = model.text_encoder.model
    own = getattr(inner, "context_length", None)
    limit = getattr(getattr(inner, "config", None), "max_position_embeddings", None) or model.config.text_length
    return int(own or min(model.config.text_length, int(limit)))
