"""The bank term of SPN: every query against all training images, encoded once by the frozen target side.

L = -1/B sum_i log( exp(s(q_i, t_i) / tau) / sum_j exp(s(q_i, t_j) / tau) ), j over the whole bank (Feng et al., 2024;
docs/PAPERS.md#negative-bank).
"""

from collections import defaultdict

import numpy as np
import torch

from cirray.models.base import Retriever
from cirray.models.batch import TextBatch
from cirray.models.scoring import inward_clamp
from cirray.training.terms.bank import NegativeBank, bank_images, check_digest, check_frozen, plan_bank
from cirray.training.terms.base import TERMS, Term, TermInput, TermRows, TermSetup
from cirray.training.terms.config import BankConfig

_TOGETHER = 1024


@TERMS.register("bank_infonce")
class BankInfoNCE(Term[BankConfig]):
    """InfoNCE against the bank. Reports `bank_hidden`: the share of the bank hidden from queries as further targets."""

    def __init__(self, setup: TermSetup, settings: BankConfig) -> None:
        """Choose the bank's images; they are encoded at the first step, on the device that trains.

        Raises ConfigError when the target side is not frozen, and DataError for held-out images in the bank.
        """
        super().__init__(setup, settings)
        self._plan = plan_bank(setup, settings.extra_ids)
        self._bank: NegativeBank | None = None
        self._row_K = torch.from_numpy(self._plan.ids.places(setup.image_ids))
        self._valid = _valid_rows(setup, self._row_K) if settings.mask_known else {}

    @classmethod
    def check(cls, rows: TermRows, kind: str, settings: BankConfig) -> None:
        """Refuse held-out images in the bank, and further ones without features. Raises DataError: naming them."""
        bank_images(rows, settings.extra_ids)

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        bank = self._bank = self._bank or self._encode(given)
        positive_B, reference_B = self._rows(given.batch.target_key_B), self._rows(given.batch.reference_key_B)
        known_BK = self._known(given) if self._valid or given.batch.positive_key_BK is not None else None
        loss_B, hidden = bank.loss(
            given.output.query_BD, positive_B, reference_B, self._temperature(given.output.temperature), known_BK
        )
        self.figures = {"bank_hidden": hidden}
        return given.mean(loss_B)

    def finish(self, retriever: Retriever) -> None:
        """Refuse a retriever whose target side has changed. Raises ConfigError: naming both digests."""
        check_frozen(retriever)
        check_digest(retriever, self._plan.target_digest, "After training")

    def _encode(self, given: TermInput) -> NegativeBank:
        setup = self.setup
        return NegativeBank(setup.retriever, self._plan, setup.features, self.settings, given.gather)

    def _rows(self, key_B: torch.Tensor) -> torch.Tensor:
        """Bank index of a batch's image keys."""
        return self._row_K.to(key_B.device)[key_B]

    def _temperature(self, tau: torch.Tensor) -> torch.Tensor:
        """The temperature, fixed or learned inside its range."""
        config = self.settings
        if not config.learn_temperature:
            return tau.detach()
        return tau if config.temperature_clamp is None else inward_clamp(tau, *config.temperature_clamp)

    def _known(self, given: TermInput) -> torch.Tensor:
        """`[B, K]`: bank indices of the row's further right answers, and (`mask_known`) of the targets of its reference
        and text elsewhere; -1 fills.
        """
        texts, keys = _words(given.batch.text), given.batch.reference_key_B.tolist()
        known_BK = torch.full((len(texts), max(map(len, self._valid.values()), default=0)), -1)
        for row, query in enumerate(zip(keys, texts, strict=True)):
            valid = self._valid.get(hash(query), ())
            known_BK[row, : len(valid)] = torch.tensor(valid, dtype=torch.int64)
        known_BK = known_BK.to(given.output.query_BD.device)
        if (right_BK := given.batch.positive_key_BK) is not None:
            rows_BK = self._rows(right_BK.clamp_min(0)).masked_fill(right_BK < 0, -1)
            known_BK = torch.cat([known_BK, rows_BK.to(known_BK.device)], dim=1)
        return known_BK


def _valid_rows(setup: TermSetup, row_K: torch.Tensor) -> dict[int, list[int]]:
    """Hash of (reference key, token ids of the text) -> bank rows of its targets in triplets, where there are several.

    Two of n queries are taken for one with a chance of n² / 2⁶⁵.
    """
    rows, asked, targets = setup.every_text or setup.triplets, [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for begin in range(0, len(rows), _TOGETHER):
        some = rows[begin : begin + _TOGETHER]
        keys = setup.image_ids.places([row.reference_id for row in some]).tolist()
        words = _words(setup.retriever.tokenize([row.modification for row in some]))
        asked.append(np.fromiter(map(hash, zip(keys, words, strict=True)), np.int64, len(some)))
        targets.append(setup.image_ids.places([row.target_id for row in some]))
    asked_M, target_M = np.concatenate(asked), np.concatenate(targets)
    order = np.lexsort((target_M, asked_M))
    asked_M, target_M = asked_M[order], target_M[order]
    again_M = asked_M[1:] == asked_M[:-1]
    other_M = again_M & (target_M[1:] != target_M[:-1])  # another target of the query before it
    several = np.unique(asked_M[1:][other_M])
    found: dict[int, list[int]] = defaultdict(list)
    fresh_M = np.r_[True, ~again_M | other_M][: len(asked_M)]
    for at in np.flatnonzero(np.isin(asked_M, several) & fresh_M):
        found[int(asked_M[at])].append(int(row_K[target_M[at]]))
    return dict(found)


def _words(text: TextBatch) -> list[tuple[int, ...]]:
    """Token ids of each text without its padding."""
    rows = zip(text.ids_BT.tolist(), text.mask_BT.tolist(), strict=True)
    return [tuple(token for token, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]
