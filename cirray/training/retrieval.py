"""The retrieval task: triplets and cached patch tokens in, a trained retriever out."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from cirray.core.errors import DataError
from cirray.core.ids import Ids
from cirray.core.seeding import numpy_generator
from cirray.features.store import FeatureLookup, FeatureStore
from cirray.losses.output import LossOutput
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch, RetrieverOutput, TextBatch
from cirray.training.config import MIXERS, TrainingConfig
from cirray.training.gather import Gather
from cirray.training.mixing import PairTexts, Rows
from cirray.training.objectives import Objective, prepared, reads_candidates
from cirray.training.sampler import group_numbers
from cirray.training.task import Parted
from cirray.training.terms.base import TermRows, TermSetup
from cirray.triplets.rows import TripletRows
from cirray.triplets.schema import image_ids
from cirray.types import Triplet

_LISTS = ("negative_ids", "positive_ids")


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
        given = TripletRows.of(triplets)
        if config.swapped:
            given = TripletRows(pa.concat_tables([given.table, swapped(given.table)]))
        self.images = Ids(image_ids(given.table))
        _check(given, self.images, features)
        self.texts = PairTexts(given, config)
        self.triplets = self.texts.rows
        table, sources = self.triplets.table, pa.array(config.real_sources, pa.string())
        self.real = pc.is_in(table.column("source"), sources).to_numpy()
        rows = Rows(group_numbers(table.column("group_id")), self.real)
        self.sampler = MIXERS.get(config.mixing.kind)(rows, config, config.mixing.settings)
        every_text = () if config.pair_texts == "rows" else given
        most = {name: pc.max(pc.list_value_length(given.table.column(name))).as_py() for name in _LISTS}
        self.negatives = config.hard_negatives if reads_candidates(config) and most["negative_ids"] else 0
        self.positives = most["positive_ids"]
        self.known = TermRows(self.triplets, self.images, features, config, held_out, every_text)


class RetrievalTask(TrainingRows):
    """Trains a retriever on triplets by the configured objective."""

    def __init__(
        self, retriever: Retriever, triplets: Sequence[Triplet], features: FeatureLookup, config: TrainingConfig,
        held_out: frozenset[str] = frozenset(),
    ) -> None:  # fmt: skip
        """Check the triplets, prepare the sampler and the loss terms. Rows as those of `TrainingRows`.

        The retriever is trained in place (as the query side, if a term needs a frozen target side).

        Raises DataError naming the first row with a blank text or an image without features, and ConfigError when a
        batch cannot be filled, or for a term that does not fit the retriever.
        """
        super().__init__(triplets, features, config, held_out)
        self._retriever, self._features, self._config = prepared(retriever, config), features, config
        self.setup = TermSetup(**vars(self.known), retriever=self._retriever)
        self._objective = Objective(self.setup)

    def model(self) -> nn.Module:
        """The retriever."""
        return self._retriever

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[RetrievalBatch | Parted]:
        """The calling rank's rows of step after step, without end."""
        for step in count(start_step):
            numbers = self.sampler.rows(step, rank, world)
            rows = [self._drawn(row, step) for row in self.texts.visit(numbers, step)]
            epoch = torch.tensor(step // max(len(self.triplets) // self._config.rows_per_step, 1))
            batch = replace(self._weighted(self._told(rows), step), row_B=torch.from_numpy(numbers), epoch=epoch)
            if self._config.pieces == 1:
                yield self._with_patches(batch, rows)
            else:
                yield Parted(batch, partial(self._pieces, batch, rows))

    def batch(self, rows: Sequence[Triplet]) -> RetrievalBatch:
        """Triplets as tensors on the CPU; patch tokens keep the store's type."""
        return self._with_patches(self._told(rows), rows)

    def _told(self, rows: Sequence[Triplet]) -> RetrievalBatch:
        """Triplets as tensors, still without their patches."""
        reverse, mask_B = self._reverse_texts(rows)
        nothing = torch.empty(len(rows), 0, 0)
        return RetrievalBatch(
            reference_BPD=nothing, target_BPD=nothing,
            text=self._retriever.tokenize([row.modification for row in rows]),
            reference_key_B=self._keys([row.reference_id for row in rows]),
            target_key_B=self._keys([row.target_id for row in rows]),
            weight_B=torch.tensor([row.weight for row in rows], dtype=torch.float32),
            reverse=reverse, reverse_mask_B=mask_B,
            real_B=torch.tensor([row.source in self._config.real_sources for row in rows]),
            negative_key_M=self._hard_keys(rows) if self.negatives else None, positive_key_BK=self._right(rows),
        )  # fmt: skip

    def _pieces(self, batch: RetrievalBatch, rows: Sequence[Triplet]) -> Iterator[RetrievalBatch]:
        """A batch in its pieces, with their patches."""
        for part in np.array_split(np.arange(len(rows)), min(self._config.pieces, len(rows))):
            begin, end = int(part[0]), int(part[-1]) + 1
            yield self._with_patches(batch.piece(begin, end, len(rows)), rows[begin:end])

    def _with_patches(self, batch: RetrievalBatch, rows: Sequence[Triplet]) -> RetrievalBatch:
        """A batch with the patch tokens of its references, targets and hard negatives."""

        def read(ids: list[str]) -> torch.Tensor:
            return torch.from_numpy(self._features.get(ids))

        return replace(
            batch, reference_BPD=read([row.reference_id for row in rows]),
            target_BPD=read([row.target_id for row in rows]),
            negative_MPD=read([image for row in rows for image in self._hard(row)]) if self.negatives else None,
        )  # fmt: skip

    def loss(self, model: nn.Module, batch: RetrievalBatch, gather: Gather) -> LossOutput:
        """The configured objective."""
        return self._objective.loss(model, batch, gather)

    def vectors(self, model: nn.Module, batch: RetrievalBatch) -> RetrieverOutput:
        """What the objective reads of a batch."""
        return model(batch, self._objective.wanted)

    def loss_of(self, vectors: RetrieverOutput, batch: RetrievalBatch, gather: Gather) -> LossOutput:
        """The configured objective of a batch's vectors."""
        return self._objective.of(vectors, batch, gather)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the retriever as `load_retriever` reads it. Raises ConfigError: when a term's check fails."""
        inner = getattr(model, "module", model)
        assert isinstance(inner, Retriever)
        self._objective.finish(inner)
        inner.save(folder)

    def _drawn(self, row: Triplet, step: int) -> Triplet:
        """The row with the hard negatives of this step, a pure function of (seed, step, row)."""
        if len(row.negative_ids) <= self.negatives:
            return row
        rng = numpy_generator(self._config.seed, "negatives", step, row.triplet_id)
        chosen = rng.choice(len(row.negative_ids), size=self.negatives, replace=False)
        return replace(row, negative_ids=tuple(row.negative_ids[place] for place in chosen))

    def _keys(self, images: Sequence[str]) -> torch.Tensor:
        """Keys of images; -1 for those of no row."""
        return torch.from_numpy(self.images.places(images))

    def _hard(self, row: Triplet) -> list[str]:
        """Ids of a row's first hard negatives; its own target fills where it has fewer."""
        own = [*row.negative_ids[: self.negatives]]
        return own + [row.target_id] * (self.negatives - len(own))

    def _hard_keys(self, rows: Sequence[Triplet]) -> torch.Tensor:
        """Their keys; nobody sees what only fills."""
        fills = [at >= len(row.negative_ids) for row in rows for at in range(self.negatives)]
        key_M = self._keys([image for row in rows for image in self._hard(row)])
        return key_M.masked_fill(torch.tensor(fills, dtype=torch.bool), -1)

    def _right(self, rows: Sequence[Triplet]) -> torch.Tensor | None:
        """Keys of the rows' further right answers, of those that are images of any row."""
        if not self.positives:
            return None
        keys_BK = torch.full((len(rows), self.positives), -1)
        more = [[image for image in row.positive_ids if image != row.target_id] for row in rows]
        key_M = self._keys([image for images in more for image in images])
        for place, keys in enumerate(key_M.split([len(images) for images in more])):
            keys_BK[place, : len(keys)] = keys
        return keys_BK

    def _weighted(self, batch: RetrievalBatch, step: int) -> RetrievalBatch:
        """Weights that count real rows once among themselves and once with all others (`row_weights`)."""
        if self._config.row_weights == "flat":
            return batch
        rows = self.sampler.rows(step)
        real = int(self.real[rows].sum())
        assert batch.real_B is not None
        return replace(batch, weight_B=batch.weight_B * (1 + batch.real_B * (len(rows) / max(real, 1))))

    def _reverse_texts(self, rows: Sequence[Triplet]) -> tuple[TextBatch | None, torch.Tensor | None]:
        if not self._objective.wanted.reverse:
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


def swapped(table: pa.Table) -> pa.Table:
    """The rows of a table that have a reverse text, swapped: (target, reverse text, reference)."""
    reverse = pc.fill_null(table.column("reverse_modification"), "")
    table = table.filter(pc.not_equal(pc.utf8_trim_whitespace(reverse), ""))
    nothing = pa.repeat(pa.scalar([], pa.list_(pa.string())), len(table))
    turned = {
        "triplet_id": pc.binary_join_element_wise(table.column("triplet_id"), "~", ""),
        "reference_id": table.column("target_id"), "target_id": table.column("reference_id"),
        "modification": table.column("reverse_modification"), "reverse_modification": table.column("modification"),
        "edit": pa.repeat("", len(table)), "positive_ids": nothing, "negative_ids": nothing,
    }  # fmt: skip
    columns = {name: turned.get(name, table.column(name)) for name in table.column_names}
    return pa.table(columns, schema=table.schema)


def _check(rows: TripletRows, ids: Ids, features: FeatureLookup) -> None:
    if not rows:
        raise DataError("There are no triplets to train on. Check the triplet source and its filters.")
    blank = pc.equal(pc.utf8_trim_whitespace(rows.table.column("modification")), "")
    if (at := pc.index(blank, True).as_py()) >= 0:
        raise DataError(f"Triplet {rows[at].triplet_id!r} has an empty modification text. Remove or repair the row.")
    if isinstance(features, FeatureStore):  # a column at once
        absent = set(features.missing(ids))
    else:
        absent = {image for image in ids if image not in features}
    if absent:
        row = next(row for row in rows if not absent.isdisjoint(row.images))
        image = next(image for image in row.images if image in absent)
        raise DataError(f"Image {image!r} of triplet {row.triplet_id!r} has no features. Embed it first.")
