"""The negative bank: all training images, encoded once by the frozen target side (SPN, second stage).

Shapes: M rows of the bank, m of them here, Q tokens an image, D width, B own queries, N queries of all ranks.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from cirray.core.errors import ConfigError, DataError
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
_A, _B, _C = 0x9E3779B97F4A7C15 - 2**64, 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
"""Odd constants of a 64-bit mixer (splitmix64), as signed numbers."""


@dataclass(frozen=True)
class BankPlan:
    """The bank's images, in order, before encoding; `target_digest` is the encoder's."""

    ids: tuple[str, ...]
    place: dict[str, int]
    copy_M: torch.Tensor
    """Number of each row's picture: equal for images whose features are equal byte for byte."""
    target_digest: str


def plan_bank(setup: TermSetup, extra_ids: str = "") -> BankPlan:
    """The distinct images of the triplets, references included, and those that the file `extra_ids` names.

    Raises ConfigError when the retriever's target side is not frozen, and DataError for held-out images among them, or
    further ones without features.
    """
    check_frozen(setup.retriever)
    ids = bank_images(setup, extra_ids)
    place = {image: row for row, image in enumerate(ids)}
    return BankPlan(ids, place, _copies(ids, setup.features), setup.retriever.target_digest)


def bank_images(rows: TermRows, extra_ids: str = "") -> tuple[str, ...]:
    """The bank's images, sorted. Raises DataError: for held-out images among them, or further ones without features."""
    ids = tuple(sorted({*rows.image_ids, *_extra(extra_ids, rows.features)}))
    if rows.held_out:
        refuse_leaks(ids, {"the data set": rows.held_out}, what="The negative bank")
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
        known_BM: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """InfoNCE of the own queries against the whole bank.

        Args:
            query_BD: own queries.
            positive_B: bank index of each one's target.
            reference_B: bank index of each one's own reference, which always stays a negative.
            temperature: divides the scores.
            known_BM: True for further valid targets, over the whole bank.

        Returns: Losses `[B]` in nats, and the share of the bank hidden from queries as further targets (scalar).
        """
        share = self.collective
        positive_N, reference_N = share.rows(positive_B), share.rows(reference_B)
        further_Nm = self.further_targets(positive_N)
        if known_BM is not None:
            stop = self.rows.start + len(self.rows.tokens_MQD)
            further_Nm |= share.rows(known_BM)[:, self.rows.start : stop]
        self._keep(further_Nm, positive_N)
        self._keep(further_Nm, reference_N)
        hidden = share.total(further_Nm.sum()) / (len(positive_N) * len(self))
        if self.config.neg_num is not None:
            further_Nm = further_Nm | self._unsampled(positive_N, share.rows(_row_seeds(positive_B)))
        loss_B = bank_infonce(score, query_BD, self.rows, positive_B, temperature, further_Nm, share, self.config.chunk)
        return loss_B, hidden.float()

    def further_targets(self, positive_N: torch.Tensor) -> torch.Tensor:
        """`[N, m]`: rows that show a target's picture again or one too near, including the target."""
        place_N, here_N = self.rows.local(positive_N)
        stop = self.rows.start + len(self.rows.tokens_MQD)
        found_Nm = torch.zeros(len(positive_N), len(self.rows.tokens_MQD), dtype=torch.bool, device=self.device)
        if self.config.mask_same_image:
            found_Nm |= self.copy_M[positive_N][:, None] == self.copy_M[self.rows.start : stop][None, :]
        if self.config.duplicate_cosine is not None:
            own_ND = self.collective.total(self._means_mD[place_N] * here_N[:, None])
            with torch.autocast(self.device.type, enabled=False):  # bf16's digits do not tell a cosine of 0.98 from 1
                found_Nm |= own_ND @ self._means_mD.T > self.config.duplicate_cosine
        return found_Nm

    def _keep(self, hidden_Nm: torch.Tensor, index_N: torch.Tensor) -> None:
        """Take one row per query out of the mask, if it is here."""
        place_N, here_N = self.rows.local(index_N)
        query_N = torch.arange(len(index_N), device=index_N.device)[here_N]
        hidden_Nm[query_N, place_N[here_N]] = False

    def _unsampled(self, positive_N: torch.Tensor, seed_N: torch.Tensor) -> torch.Tensor:
        """`[N, m]`: rows outside each query's random draw of `neg_num`, never the positive; equal on all ranks."""
        assert self.config.neg_num is not None
        draw_NM = _mixed(seed_N[:, None] + _A * torch.arange(len(self), device=self.device)[None, :])
        query_N = torch.arange(len(positive_N), device=self.device)
        draw_NM[query_N, positive_N] = torch.iinfo(torch.int64).min
        wanted = min(self.config.neg_num + 1, len(self))
        limit_N1 = draw_NM.kthvalue(wanted, dim=1, keepdim=True).values
        stop = self.rows.start + len(self.rows.tokens_MQD)
        return draw_NM[:, self.rows.start : stop] > limit_N1


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
    known: dict[bytes, int] = {}
    numbers = []
    for begin in range(0, len(ids), _BATCH):
        for tokens in features.get(list(ids[begin : begin + _BATCH])):
            content = hashlib.blake2b(tokens.tobytes(), digest_size=16).digest()
            numbers.append(known.setdefault(content, len(known)))
    return torch.tensor(numbers, dtype=torch.int64)


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


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Numbers that look random, a pure function of their argument (wrapping 64-bit products and shifts)."""
    values = (values ^ (values >> 30)) * _B
    values = (values ^ (values >> 27)) * _C
    return values ^ (values >> 31)
