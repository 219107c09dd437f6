"""The negative bank: all training images, encoded once by the frozen target side (SPN, second stage).

Shapes: M rows of the bank, m of them here, Q tokens an image, D width, B own queries, N queries of all ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn import functional

from cirray.core.errors import ConfigError, DataError
from cirray.core.ids import Ids
from cirray.core.texts import decoded
from cirray.data.leaks import refuse_leaks
from cirray.features.store import FeatureLookup
from cirray.losses.bank import ALONE, BankRows, Collective, bank_infonce
from cirray.models.base import Retriever
from cirray.models.scoring import score
from cirray.training.gather import Gather
from cirray.training.terms.base import TermRows, TermSetup
from cirray.training.terms.config import BankConfig

_BATCH = 256
_SCORES = 2**26
"""Most scores of queries and a bank's tokens at a time."""
_A, _B, _C = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""Odd constants of a 64-bit mixer (splitmix64), as signed numbers."""


@dataclass(frozen=True)
class BankPlan:
    """The bank's images, in order, before encoding; `target_digest` is the encoder's."""

    ids: Ids
    copy_M: torch.Tensor
    """Number of each row's picture: equal for images whose features are equal byte for byte."""
    target_digest: str


def plan_bank(setup: TermSetup, extra_ids: str = "") -> BankPlan:
    """The distinct images of the triplets, references included, and those that the file `extra_ids` names.

    Raises ConfigError when the retriever's target side is not frozen, and DataError for held-out images among them, or
    further ones without features.
    """
    check_frozen(setup.retriever)
    ids = Ids(bank_images(setup, extra_ids))
    return BankPlan(ids, _copies(ids, setup.features), setup.retriever.target_digest)


def bank_images(rows: TermRows, extra_ids: str = "") -> pa.Array:
    """The bank's images, sorted. Raises DataError: for held-out images among them, or further ones without features."""
    more = pa.array(_extra(extra_ids, rows.features), pa.large_string())
    ids = pc.unique(pa.chunked_array([rows.image_ids.column, more]))
    ids = ids.take(pc.sort_indices(ids))
    if rows.held_out:
        refuse_leaks((image.as_py() for image in ids), {"the data set": rows.held_out}, what="The negative bank")
    return ids


def check_frozen(retriever: Retriever) -> None:
    """Refuse a retriever whose gallery vectors would change in training.

    Raises ConfigError naming a trainable weight of the target side.
    """
    moving = [name for name, weight in retriever.target_weights().items() if weight.requires_grad]
    if moving:
        raise ConfigError(
            f"A negative bank needs a frozen target side; {len(moving)} of its weights are trainable, e.g. "
            f"{moving[0]!r}. Train a copy of the query side (fork_for_query_tuning), or drop the term bank_infonce."
        )


def check_digest(retriever: Retriever, digest: str, when: str) -> None:
    """Refuse a target side that did not make the bank. Raises ConfigError: naming both digests."""
    if retriever.target_digest != digest:
        raise ConfigError(
            f"{when} the target side has digest {retriever.target_digest[:12]}, the negative bank belongs to "
            f"{digest[:12]}: its weights have moved, so the bank is stale. Freeze them, and start again."
        )


class NegativeBank:
    """The encoded rows of this process, and the loss against all rows."""

    def __init__(
        self, retriever: Retriever, plan: BankPlan, features: FeatureLookup, config: BankConfig, gather: Gather
    ) -> None:
        """Encode this rank's rows, on the retriever's device; every rank calls it."""
        check_digest(retriever, plan.target_digest, "When the bank is built")
        self.plan, self.config, self.device = plan, config, retriever.device
        first = encode_rows(retriever, plan.ids[:1], features, config.half)
        sharded = 1 < gather.world <= len(plan.ids) and _sharded(config, first, len(plan.ids))
        self.collective: Collective = gather if sharded else ALONE
        rank, world = (gather.rank, gather.world) if sharded else (0, 1)
        start, stop = (len(plan.ids) * number // world for number in (rank, rank + 1))
        tokens_mQD = encode_rows(retriever, plan.ids[start:stop], features, config.half)
        self.rows = BankRows(tokens_mQD, start)
        self.copy_M = plan.copy_M.to(self.device)
        self._means_mD = functional.normalize(tokens_mQD.float().mean(dim=1), dim=-1)

    def __len__(self) -> int:
        """Images in the whole bank."""
        return len(self.plan.ids)

    def loss(
        self,
        query_BD: torch.Tensor,
        positive_B: torch.Tensor,
        reference_B: torch.Tensor,
        temperature: torch.Tensor,
        known_BK: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """InfoNCE of the own queries against the whole bank.

        Args:
            query_BD: own queries.
            positive_B: bank index of each one's target.
            reference_B: bank index of each one's own reference, which always stays a negative.
            temperature: divides the scores.
            known_BK: bank indices of further valid targets; -1 fills. K is equal on all ranks.

        Returns: Losses `[B]` in nats, and the share of the bank hidden from queries as further targets (scalar).
        """
        share, (rows, tokens, _) = self.collective, self.rows.tokens_MQD.shape
        hiding = self.hiding(positive_B, reference_B, known_BK)
        queries = len(hiding.positive_N)
        wide = min(self.config.chunk, max(_SCORES // (queries * tokens), 1))
        further = torch.stack([hiding.further(slice(at, at + wide)).sum() for at in range(0, rows, wide)]).sum()
        hidden = share.total(further) / (queries * len(self))
        loss_B = bank_infonce(score, query_BD, self.rows, positive_B, temperature, hiding, share, wide)
        return loss_B, hidden.float()

    def hiding(
        self, positive_B: torch.Tensor, reference_B: torch.Tensor, known_BK: torch.Tensor | None = None
    ) -> "Hiding":
        """What the queries of all ranks must not see; arguments as those of `loss`. Every rank calls it."""
        share, config = self.collective, self.config
        positive_N, own_ND, seed_N, limit_N = share.rows(positive_B), None, None, None
        if config.duplicate_cosine is not None:
            place_N, here_N = self.rows.local(positive_N)
            own_ND = share.total(self._means_mD[place_N] * here_N[:, None])
        if config.neg_num is not None:
            seed_N = share.rows(_row_seeds(positive_B))
            limit_N = self._limits(positive_N, seed_N, config.neg_num)
        known_NK = None if known_BK is None else share.rows(known_BK)
        return Hiding(self, positive_N, share.rows(reference_B), own_ND, known_NK, seed_N, limit_N)

    def near(self, own_ND: torch.Tensor, block: slice) -> torch.Tensor:
        """`[N, c]`: rows of a block that are too near to the targets."""
        limit = self.config.duplicate_cosine
        assert limit is not None
        with torch.autocast(self.device.type, enabled=False):  # bf16's digits do not tell a cosine of 0.98 from 1
            return own_ND @ self._means_mD[block].T > limit

    def index(self, block: slice) -> torch.Tensor:
        """Bank indices of a block of the rows here."""
        return self.rows.start + torch.arange(len(self.rows.tokens_MQD), device=self.device)[block]

    def _limits(self, positive_N: torch.Tensor, seed_N: torch.Tensor, wanted: int) -> torch.Tensor:
        """The number up to which a row is in a query's random draw of `wanted` rows and its target."""
        limits, every_M = [], torch.arange(len(self), device=self.device)
        parts = (row_N.split(max(_SCORES // len(self), 1)) for row_N in (positive_N, seed_N))
        for some_n, seed_n in zip(*parts, strict=True):
            draw_nM = _drawn(seed_n, every_M).scatter(1, some_n[:, None], torch.iinfo(torch.int64).min)
            limits.append(draw_nM.kthvalue(min(wanted + 1, len(self)), dim=1).values)
        return torch.cat(limits)


@dataclass(frozen=True)
class Hiding:
    """What N queries must not see of a bank's rows, made for a block of rows at a time."""

    bank: NegativeBank
    positive_N: torch.Tensor
    reference_N: torch.Tensor
    own_ND: torch.Tensor | None
    """Mean vectors of the targets."""
    known_NK: torch.Tensor | None
    seed_N: torch.Tensor | None
    limit_N: torch.Tensor | None

    def further(self, block: slice) -> torch.Tensor:
        """`[N, c]`: rows that are a query's target again, too near to it, or known to be right; never its own target
        or reference.
        """
        bank, index_c = self.bank, self.bank.index(block)
        found_Nc = torch.zeros(len(self.positive_N), len(index_c), dtype=torch.bool, device=bank.device)
        if bank.config.mask_same_image:
            found_Nc |= bank.copy_M[self.positive_N][:, None] == bank.copy_M[index_c]
        if self.own_ND is not None:
            found_Nc |= bank.near(self.own_ND, block)
        for known_N in () if self.known_NK is None else self.known_NK.unbind(dim=1):
            found_Nc |= known_N[:, None] == index_c
        for own_N in (self.positive_N, self.reference_N):
            found_Nc &= own_N[:, None] != index_c
        return found_Nc

    def __call__(self, block: slice) -> torch.Tensor:
        """`[N, c]`: these, and the rows outside each query's random draw; equal on all ranks."""
        hidden_Nc = self.further(block)
        if self.seed_N is not None and self.limit_N is not None:
            index_c = self.bank.index(block)
            beyond_Nc = _drawn(self.seed_N, index_c) > self.limit_N[:, None]
            hidden_Nc |= beyond_Nc & (self.positive_N[:, None] != index_c)
        return hidden_Nc


@torch.no_grad()
def encode_rows(retriever: Retriever, ids: Sequence[str], features: FeatureLookup, half: bool = False) -> torch.Tensor:
    """Gallery tokens `[m, Q, D]` of images, on the retriever's device, in inference mode, `_BATCH` at a time."""
    mode = retriever.training
    retriever.eval()
    blocks = []
    for begin in range(0, len(ids), _BATCH):
        patches_BPD = torch.from_numpy(features.get(list(ids[begin : begin + _BATCH]))).to(retriever.device)
        with torch.autocast(retriever.device.type, enabled=False):  # as evaluation and index encode them
            block_BQD = retriever.encode_gallery(patches_BPD).float()
        blocks.append(block_BQD.half() if half else block_BQD)
    retriever.train(mode)
    return torch.cat(blocks)


def _sharded(config: BankConfig, first_1QD: torch.Tensor, count: int) -> bool:
    if config.sharded != "auto":
        return config.sharded
    return first_1QD.numel() * first_1QD.element_size() * count > config.replicate_gb * 1e9


def _copies(ids: Sequence[str], features: FeatureLookup) -> torch.Tensor:
    """A number per image, equal for byte-equal features."""
    digests = b"".join(
        hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
        for begin in range(0, len(ids), _BATCH)
        for tokens in features.get(list(ids[begin : begin + _BATCH]))
    )
    return torch.from_numpy(np.unique(np.frombuffer(digests, "V16"), return_inverse=True)[1].astype(np.int64))


def _extra(path: str, features: FeatureLookup) -> list[str]:
    """Ids of a text file. Raises DataError: for a file that cannot be read, or an image without features."""
    if not path:
        return []
    try:
        lines = decoded(Path(path).expanduser().read_bytes()).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The file of further bank images {path!r} cannot be read: {error}.") from None
    ids = [line.strip() for line in lines if line.strip()]
    absent = [image for image in ids if image not in features]
    if absent:
        raise DataError(f"Image {absent[0]!r} of {path!r} has no features. Embed it, or take it out of the file.")
    return ids


def _row_seeds(like_B: torch.Tensor) -> torch.Tensor:
    """One random number per query; the loop seeds torch by the step, so a resumed run draws the same."""
    return torch.randint(2**62, (len(like_B),)).to(like_B.device)


def _drawn(seed_N: torch.Tensor, index_c: torch.Tensor) -> torch.Tensor:
    """A random number for every query and row, `[N, c]`; the smallest are drawn."""
    return _mixed(seed_N[:, None] + _A * index_c)


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Numbers that look random, a pure function of their argument (wrapping 64-bit products and shifts)."""
    values = (values ^ (values >> 30)) * _B
    values = (values ^ (values >> 27)) * _C
    return values ^ (values >> 31)
