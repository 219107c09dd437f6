"""The retrieval task: triplets and cached patch tokens in, a trained retriever out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from torch import nn

from cirray.core.errors import DataError
from cirray.features.store import FeatureLookup
from cirray.losses.output import LossOutput
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch
from cirray.models.text import TextBatch
from cirray.training.config import TrainingConfig
from cirray.training.gather import Gather
from cirray.training.mixing import PairTexts, Rows
from cirray.training.mixing_config import MIXERS
from cirray.training.objectives import Objective, prepared, wanted_outputs
from cirray.training.terms.base import TermRows, TermSetup
from cirray.types import Triplet


class TrainingRows:
    """The rows of a training, and those of each step; no model is needed for them."""

    def __init__(
        self, triplets: Sequence[Triplet], features: FeatureLookup, config: TrainingConfig,
        held_out: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Check the triplets and prepare the sampler.

        Args:
            triplets: rows with non-empty texts; `group_id` names the image family, `weight` scales the row's loss.
            features: holds every reference and target.
            config: batch, mixing, seed.
            held_out: images that no term may train on.

        Raises DataError naming the first row with a blank text or an image without features, and ConfigError when a
        batch cannot be filled.
        """
        given = [*triplets, *swapped(triplets)] if config.swapped else list(triplets)
        _check(given, features)
        self.texts = PairTexts(given, config)
        self.triplets = self.texts.rows
        self.real = [row.source in config.real_sources for row in self.triplets]
        groups = tuple(row.group_id for row in self.triplets)
        self.sampler = MIXERS.get(config.mixing.kind)(Rows(groups, tuple(self.real)), config, config.mixing.settings)
        ids = {image for row in triplets for image in (row.reference_id, row.target_id)}
        self.keys = {image: key for key, image in enumerate(sorted(ids))}
        every_text = () if config.pair_texts == "rows" else tuple(given)
        self.known = TermRows(tuple(self.triplets), tuple(self.keys), features, config, held_out, every_text)


class RetrievalTask:
    """Trains a retriever on triplets by the configured objective."""

    def __init__(
        self, retriever: Retriever, triplets: Sequence[Triplet], features: FeatureLookup, config: TrainingConfig,
        held_out: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Check the triplets, prepare the sampler and the loss terms.

        Args:
            retriever: trained in place (as the query side, if a term needs a frozen target side).
            triplets: as those of `TrainingRows`.
            features: holds every reference and target.
            config: objective, batch, seed.
            held_out: images that no term may train on.

        Raises DataError naming the first row with a blank text or an image without features, and ConfigError when a
        batch cannot be filled, or for a term that does not fit the retriever.
        """
        rows = TrainingRows(triplets, features, config, held_out)
        self._retriever, self._features, self._config = prepared(retriever, config), features, config
        self._triplets, self._texts, self._sampler = rows.triplets, rows.texts, rows.sampler
        self._real, self._keys = rows.real, rows.keys
        self.setup = TermSetup(**vars(rows.known), retriever=self._retriever)
        self._objective, self._reverse = Objective(self.setup), wanted_outputs(config).reverse

    def model(self) -> nn.Module:
        """The retriever."""
        return self._retriever

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[RetrievalBatch]:
        """The calling rank's rows of step after step, without end."""
        for step in count(start_step):
            numbers = self._sampler.rows(step, rank, world)
            batch = self.batch([self._texts.visit(self._triplets[row], step) for row in numbers])
            epoch = torch.tensor(step // max(len(self._triplets) // self._config.rows_per_step, 1))
            yield replace(self._weighted(batch, step), row_B=torch.from_numpy(numbers), epoch=epoch)

    def batch(self, rows: Sequence[Triplet]) -> RetrievalBatch:
        """Triplets as tensors on the CPU; patch tokens keep the store's type."""
        reverse, mask_B = self._reverse_texts(rows)
        return RetrievalBatch(
            reference_BPD=torch.from_numpy(self._features.get([row.reference_id for row in rows])),
            target_BPD=torch.from_numpy(self._features.get([row.target_id for row in rows])),
            text=self._retriever.tokenize([row.modification for row in rows]),
            reference_key_B=torch.tensor([self._keys[row.reference_id] for row in rows]),
            target_key_B=torch.tensor([self._keys[row.target_id] for row in rows]),
            weight_B=torch.tensor([row.weight for row in rows], dtype=torch.float32),
            reverse=reverse, reverse_mask_B=mask_B,
            real_B=torch.tensor([row.source in self._config.real_sources for row in rows]),
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: RetrievalBatch, gather: Gather) -> LossOutput:
        """The configured objective."""
        return self._objective.loss(model, batch, gather)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the retriever as `load_retriever` reads it. Raises ConfigError: when a term's check fails."""
        inner = getattr(model, "module", model)
        assert isinstance(inner, Retriever)
        self._objective.finish(inner)
        inner.save(folder)

    def _weighted(self, batch: RetrievalBatch, step: int) -> RetrievalBatch:
        """Weights that count real rows once among themselves and once with all others (`row_weights`)."""
        if self._config.row_weights == "flat":
            return batch
        rows = self._sampler.rows(step)
        real = sum(self._real[row] for row in rows)
        assert batch.real_B is not None
        return replace(batch, weight_B=batch.weight_B * (1 + batch.real_B * (len(rows) / max(real, 1))))

    def _reverse_texts(self, rows: Sequence[Triplet]) -> tuple[TextBatch | None, torch.Tensor | None]:
        if not self._reverse:
            return None, None
        has = [bool(row.reverse_modification and row.reverse_modification.strip()) for row in rows]
        mask_B = torch.tensor(has, dtype=torch.float32)
        if not any(has):
            return None, mask_B
        texts = [
            row.reverse_modification if present and row.reverse_modification else row.modification
            for row, present in zip(rows, has, strict=True)
        ]
        return self._retriever.tokenize(texts), mask_B


def swapped(triplets: Sequence[Triplet]) -> list[Triplet]:
    """The triplets with a reverse text, swapped: (target, reverse text, reference)."""
    return [
        replace(
            row, triplet_id=f"{row.triplet_id}~", reference_id=row.target_id, target_id=row.reference_id,
            modification=row.reverse_modification, reverse_modification=row.modification, edit="",
        )
        for row in triplets
        if row.reverse_modification and row.reverse_modification.strip()
    ]  # fmt: skip


def _check(triplets: Sequence[Triplet], features: FeatureLookup) -> None:
    if not triplets:
        raise DataError("There are no triplets to train on. Check the triplet source and its filters.")
    for row in triplets:
        if not row.modification.strip():
            raise DataError(f"Triplet {row.triplet_id!r} has an empty modification text. Remove or repair the row.")
        for image in (row.reference_id, row.target_id):
            if image not in features:
                raise DataError(f"Image {image!r} of triplet {row.triplet_id!r} has no features. Embed it first.")
