"""Training of the generator: alignment with captions, then the answer loss on labelled triplets."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cirray.core.errors import ConfigError, DataError
from cirray.features.store import FeatureLookup
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.prompts import prompt
from cirray.generators.trainable import AnswerLoss, Answers, TrainableGenerator
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.batch import Movable
from cirray.models.towers.language import bag_ids, embed_bags
from cirray.training.config import LoopConfig
from cirray.training.gather import Gather
from cirray.training.sampler import BatchSampler
from cirray.types import Pair, Triplet

Bags = Sequence[Sequence[str]]
GeneratorT = TypeVar("GeneratorT", bound=TrainableGenerator)
TUNED = "generator.pt"
_BAG_WIDTH = 24
_DESCRIBE = "describe/1"
_TEMPERATURE = 0.1
"""Of the cosines between soft tokens and words."""


@dataclass(frozen=True)
class GeneratorBatch(Movable):
    """Patches of reference and target, and the answers to be written.

    `tokens`: answer tokens of the whole batch, of which this is a piece; None: of itself.
    """

    reference_BPD: torch.Tensor
    target_BPD: torch.Tensor
    answers: Answers
    tokens: torch.Tensor | None = None


@dataclass(frozen=True)
class AlignmentBatch(Movable):
    """Patches of images with the wanted soft tokens: bags `ids_BQW` (-1 fills), or captions.

    `reference_BPD`, `target_BPD` and `difference_BQW` are pairs for the difference pass, with the bags of their slots.
    `tokens` as in `GeneratorBatch`. `words_BM`: rows of the captions' word table that a caption holds (-1 fills).
    """

    patches_BPD: torch.Tensor
    ids_BQW: torch.Tensor | None = None
    answers: Answers | None = None
    reference_BPD: torch.Tensor | None = None
    target_BPD: torch.Tensor | None = None
    difference_BQW: torch.Tensor | None = None
    tokens: torch.Tensor | None = None
    words_BM: torch.Tensor | None = None


@dataclass(frozen=True)
class Soft:
    """Soft tokens `[B, Q, E]` of single images, and of pairs if the batch has any."""

    image_BQE: torch.Tensor
    difference_BQE: torch.Tensor | None = None


class AlignmentPass(nn.Module):
    """The generator's forward pass in the alignment as one module, for engines to wrap."""

    def __init__(self, generator: ModificationTextModel) -> None:
        """Wrap a generator."""
        super().__init__()
        self.generator = generator

    def forward(self, batch: AlignmentBatch) -> Soft | AnswerLoss:
        """Soft tokens for the bags, or the loss of the captions."""
        soft_BQE = self.generator.read_image(batch.patches_BPD)
        if batch.answers is not None:
            prefix_BLE = self.generator.image_prefix(soft_BQE, prompt(_DESCRIBE))
            return self.generator.answer_loss(prefix_BLE, batch.answers)
        if batch.reference_BPD is None or batch.target_BPD is None:
            return Soft(soft_BQE)
        return Soft(soft_BQE, self.generator.read_pair(batch.reference_BPD, batch.target_BPD))


class _Task(Generic[GeneratorT]):
    """Base of both tasks: the model, the features, and saving."""

    stage: Literal["alignment", "answers"] = "answers"

    def __init__(self, generator: GeneratorT, features: FeatureLookup, config: LoopConfig, rows: int) -> None:
        generator.enter(self.stage)
        self._generator, self._features, self._config = generator, features, config
        self._pieces = getattr(config, "pieces", 1)
        self._sampler = BatchSampler(rows, min(config.batch, rows), config.seed)

    def model(self) -> nn.Module:
        """The generator's network."""
        return self._generator

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write every weight that training can have changed; a frozen language model stays out."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self._generator.tuned_state(), folder / TUNED)

    def _rows(self, sampler: BatchSampler, step: int, rank: int, world: int) -> np.ndarray:
        if sampler.batch % world:
            raise ConfigError(
                f"A batch of {sampler.batch}, all rows there are, cannot be shared evenly by {world} workers. "
                f"Set the batch to {max(sampler.batch // world, 1) * world} or ray.num_workers=1."
            )
        return sampler.rows(step, rank, world)

    def _patches(self, ids: Sequence[str]) -> torch.Tensor:
        return _patches_of(self._features, ids)


def _patches_of(features: FeatureLookup, ids: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(features.get(ids)).float()


def generator_batch(
    generator: TrainableGenerator, features: FeatureLookup, pairs: Sequence[Pair] | Sequence[Triplet],
    texts: Sequence[str],
) -> GeneratorBatch:  # fmt: skip
    """Image pairs and the texts to be written of them, as tensors on the CPU."""
    return GeneratorBatch(
        reference_BPD=_patches_of(features, [pair.reference_id for pair in pairs]),
        target_BPD=_patches_of(features, [pair.target_id for pair in pairs]),
        answers=generator.encode_answers(texts),
    )


class AlignmentTask(_Task[ModificationTextModel]):
    """Aligns projected queries with the language model's input, from captions alone.

    `bags`: each soft token is drawn to the summed word embeddings of its cell's phrase (mean squared error).
    `captions`: the frozen language model must write the caption after the soft tokens (BLIP-2's second stage).
    `words`: a caption's words are drawn from a mixture of the soft tokens, each a distribution over all captions' words
    by its nearness to their embeddings; the language model is not run.
    With `pairs` and bags, the difference pass is drawn to the bags of its slots too: what two captions differ in.
    """

    stage = "alignment"

    def __init__(
        self,
        generator: ModificationTextModel,
        features: FeatureLookup,
        config: LoopConfig,
        bags: Mapping[str, Bags] | None = None,
        captions: Mapping[str, str] | None = None,
        pairs: Mapping[tuple[str, str], Bags] | None = None,
        words: bool = False,
    ) -> None:
        """Prepare. `bags` are one bag of words per query, by image id; without them captions are used. `pairs` are bags
        of the difference slots, by image pair. `words` reads the captions as words, not through the language model.

        Raises DataError when neither is given, or the bags' number is not the number of queries.
        """
        self._ids = sorted(bags or captions or {})
        if not self._ids:
            raise DataError("Alignment needs captions, and there are none. Give some or set alignment=none.")
        self._captions = captions
        known = [_word_ids(generator, captions[name]) for name in self._ids] if words and captions else []
        self._vocabulary_W = torch.tensor(sorted({number for row in known for number in row}))
        self._words_MN = _places(known, self._vocabulary_W) if known else None
        self._bags_MQW = self._bag_table(generator, {name: bags[name] for name in self._ids}) if bags else None
        self._pairs = sorted(pairs or {})
        named = {" and ".join(pair): pairs[pair] for pair in self._pairs} if pairs else {}
        self._difference_MQW = self._bag_table(generator, named) if named else None
        self._pair_sampler = BatchSampler(len(named), min(config.batch, len(named)), config.seed + 1) if named else None
        super().__init__(generator, features, config, len(self._ids))

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[AlignmentBatch]:
        """The calling rank's images of step after step, without end."""
        for step in count(start_step):
            rows = self._rows(self._sampler, step, rank, world)
            ids = [self._ids[row] for row in rows]
            if self._bags_MQW is not None:
                batch = AlignmentBatch(self._patches(ids), ids_BQW=self._bags_MQW[torch.from_numpy(rows)])
                yield self._with_pairs(batch, step, rank, world)
            elif self._words_MN is not None:
                yield AlignmentBatch(self._patches(ids), words_BM=self._words_MN[torch.from_numpy(rows)])
            else:
                assert self._captions is not None
                answers = self._generator.encode_answers([self._captions[name] for name in ids])
                yield AlignmentBatch(self._patches(ids), answers=answers)

    def model(self) -> nn.Module:
        """The network, wrapped for alignment."""
        return AlignmentPass(self._generator)

    def loss(self, model: nn.Module, batch: AlignmentBatch, gather: Gather) -> LossOutput:
        """Squared error to the bags' vectors, or the captions' cross-entropy per token, of the global batch."""
        found = model(batch)
        if isinstance(found, AnswerLoss):
            return _mean_over_ranks(found, gather, batch.tokens)
        if batch.words_BM is not None:
            return LossOutput(self._words_loss(found.image_BQE, batch.words_BM))
        assert batch.ids_BQW is not None
        terms = {"image": _relative_error(found.image_BQE, self._vectors(batch.ids_BQW), gather).mean()}
        if found.difference_BQE is not None and batch.difference_BQW is not None:
            terms["difference"] = self._difference_loss(found.difference_BQE, batch.difference_BQW, gather)
        return weighted_sum(terms, dict.fromkeys(terms, 1.0))

    def pieces(self, batch: AlignmentBatch) -> list[AlignmentBatch]:
        """Captions go through the language model in `pieces`; bags do not go through it."""
        if batch.answers is None:
            return [batch]
        parts = _parts(batch.answers, self._pieces)
        return [AlignmentBatch(batch.patches_BPD[rows], answers=own, tokens=of) for rows, own, of in parts]

    def _with_pairs(self, batch: AlignmentBatch, step: int, rank: int, world: int) -> AlignmentBatch:
        if self._pair_sampler is None or self._difference_MQW is None:
            return batch
        rows = self._rows(self._pair_sampler, step, rank, world)
        first, second = zip(*(self._pairs[row] for row in rows), strict=True)
        return replace(
            batch,
            reference_BPD=self._patches(first),
            target_BPD=self._patches(second),
            difference_BQW=self._difference_MQW[torch.from_numpy(rows)],
        )

    def _difference_loss(self, soft_BQE: torch.Tensor, bags_BQW: torch.Tensor, gather: Gather) -> torch.Tensor:
        """Relative error of q_c; changed cells, one or two of nine, weigh as much as all the others together."""
        error_BQ = _relative_error(soft_BQE, self._vectors(bags_BQW), gather)
        changed_BQ = ((bags_BQW >= 0).sum(dim=-1) > 1).float()
        parts = [
            (error_BQ * mask_BQ).sum() * gather.world / gather.total(mask_BQ.sum()).clamp_min(1)
            for mask_BQ in (changed_BQ, 1 - changed_BQ)
        ]
        return (parts[0] + parts[1]) / 2

    def _words_loss(self, soft_BQE: torch.Tensor, words_BM: torch.Tensor) -> torch.Tensor:
        """Mean of -log p over the words of captions and over captions, and the soft tokens' relative error of norm."""
        with torch.no_grad():
            table_WE = self._generator.language.embed(self._vocabulary_W.to(soft_BQE.device)).float()
            middle_E, norm = table_WE.mean(dim=0), table_WE.norm(dim=-1).mean()
            names_WE = F.normalize(table_WE - middle_E, dim=-1)
        near_BQW = F.normalize(soft_BQE.float() - middle_E, dim=-1) @ names_WE.T / _TEMPERATURE
        mixed_BW = near_BQW.log_softmax(dim=-1).logsumexp(dim=1) - math.log(soft_BQE.shape[1])
        there_BM = words_BM >= 0
        said_BM = mixed_BW.gather(1, words_BM.clamp_min(0)) * there_BM
        scale = (soft_BQE.float().norm(dim=-1) / norm - 1).square().mean()
        return scale - (said_BM.sum(dim=1) / there_BM.sum(dim=1).clamp_min(1)).mean()

    @torch.no_grad()
    def _vectors(self, ids_BQW: torch.Tensor) -> torch.Tensor:
        return embed_bags(self._generator.language, ids_BQW).float()

    @staticmethod
    def _bag_table(generator: ModificationTextModel, bags: Mapping[str, Bags]) -> torch.Tensor:
        queries = generator.config.qformer.queries
        wrong = next((name for name in bags if len(bags[name]) != queries), None)
        if wrong is not None:
            raise DataError(
                f"Image {wrong!r} has {len(bags[wrong])} phrases for {queries} queries. "
                "Set qformer.queries to the number of cells, or alignment=captions."
            )
        return torch.stack([bag_ids(generator.language, bags[name], _BAG_WIDTH) for name in bags])


class GeneratorTask(_Task[TrainableGenerator]):
    """Trains the generator on labelled triplets, forward direction only: no human text exists for swapped pairs."""

    def __init__(
        self,
        generator: TrainableGenerator,
        triplets: Sequence[Triplet],
        features: FeatureLookup,
        config: LoopConfig,
    ) -> None:
        """Prepare. Raises DataError: naming the first row with a blank text or an image without features."""
        check_triplets(triplets, features)
        self._triplets = list(triplets)
        super().__init__(generator, features, config, len(self._triplets))

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[GeneratorBatch]:
        """The calling rank's triplets of step after step, without end."""
        for step in count(start_step):
            rows = self._rows(self._sampler, step, rank, world)
            yield self.batch([self._triplets[row] for row in rows])

    def batch(self, rows: Sequence[Triplet]) -> GeneratorBatch:
        """Triplets as tensors on the CPU."""
        return generator_batch(self._generator, self._features, rows, [row.modification for row in rows])

    def loss(self, model: nn.Module, batch: GeneratorBatch, gather: Gather) -> LossOutput:
        """Cross-entropy per answer token of the global batch."""
        found = model(batch.reference_BPD, batch.target_BPD, batch.answers)
        return _mean_over_ranks(found, gather, batch.tokens)

    def pieces(self, batch: GeneratorBatch) -> list[GeneratorBatch]:
        """The pairs in `pieces`."""
        parts = _parts(batch.answers, self._pieces)
        return [GeneratorBatch(batch.reference_BPD[at], batch.target_BPD[at], own, of) for at, own, of in parts]


def _word_ids(generator: ModificationTextModel, caption: str) -> list[int]:
    """Distinct token ids of a caption's words."""
    return sorted({number for word in caption.split() for number in generator.language.word_ids(word)})


def _places(known: Sequence[Sequence[int]], vocabulary_W: torch.Tensor) -> torch.Tensor:
    """Rows of the vocabulary that each caption holds, filled with -1: `[M, N]`."""
    rows = [torch.searchsorted(vocabulary_W, torch.tensor(row)) for row in known]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)


def check_triplets(triplets: Sequence[Triplet], features: FeatureLookup) -> None:
    """Refuse rows that cannot be trained on. Raises DataError: no rows, a blank text, or an image without features."""
    if not triplets:
        raise DataError("There are no labelled triplets to train the generator on. Give at least some hundred.")
    for row in triplets:
        if not row.modification.strip():
            raise DataError(f"Triplet {row.triplet_id!r} has an empty modification text. Remove or repair the row.")
        missing = [image for image in (row.reference_id, row.target_id) if image not in features]
        if missing:
            raise DataError(f"Image {missing[0]!r} of triplet {row.triplet_id!r} has no features. Embed it first.")


def _parts(answers: Answers, pieces: int) -> list[tuple[slice, Answers, torch.Tensor | None]]:
    """Rows of each piece, its answers without columns of mere padding, and the tokens of all; one piece is as it is."""
    rows = len(answers.ids_BT)
    if min(pieces, rows) == 1:
        return [(slice(None), answers, None)]
    tokens, found = answers.mask_BT.sum(), list[tuple[slice, Answers, torch.Tensor | None]]()
    for part in np.array_split(np.arange(rows), min(pieces, rows)):
        at = slice(int(part[0]), int(part[-1]) + 1)
        width = int(answers.mask_BT[at].sum(dim=1).max())
        own = Answers(answers.ids_BT[at, :width], answers.mask_BT[at, :width])
        found.append((at, replace(own, places_N=own.places), tokens))
    return found


def _mean_over_ranks(loss: AnswerLoss, gather: Gather, tokens: torch.Tensor | None = None) -> LossOutput:
    """Per-token mean over the global batch, scaled so that the mean over ranks of the ranks' losses is that mean.

    Of a piece of a batch, `tokens` are those of the rank's whole batch.
    """
    own = loss.tokens if tokens is None else tokens
    return LossOutput(loss.total * gather.world / gather.total(own.float()).clamp_min(1.0))


def _relative_error(soft_BQE: torch.Tensor, wanted_BQE: torch.Tensor, gather: Gather) -> torch.Tensor:
    """Squared error of every soft token over the variance of what is wanted, `[B, Q]`; 1 is no better than the mean.

    Word embeddings are small: without the division the gradients are as small as AdamW's epsilon.
    """
    return (soft_BQE.float() - wanted_BQE).square().mean(dim=-1) / _variance(wanted_BQE, gather)


def _variance(values: torch.Tensor, gather: Gather) -> torch.Tensor:
    """Variance over the global batch; ranks have equal shapes."""
    if gather.world == 1:
        return values.var()
    count = values.numel() * gather.world
    mean = gather.total(values.sum()) / count
    return gather.total((values - mean).square().sum()) / (count - 1)
