"""The bank term of SPN: every query against all training images, encoded once by the frozen target side.

L = -1/B sum_i log( exp(s(q_i, t_i) / tau) / sum_j exp(s(q_i, t_j) / tau) ), j over the whole bank (Feng et al., 2024;
docs/PAPERS.md#negative-bank).
"""

from collections import defaultdict

import torch

from cirray.models.base import Retriever
from cirray.models.batch import TextBatch
from cirray.models.scoring import inward_clamp
from cirray.training.terms.bank import NegativeBank, bank_images, check_digest, check_frozen, plan_bank
from cirray.training.terms.base import TERMS, Term, TermInput, TermRows, TermSetup
from cirray.training.terms.config import BankConfig


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
        self._row_K = torch.tensor([self._plan.place[image] for image in setup.image_ids])
        self._valid = _valid_rows(setup, self._plan.place) if settings.mask_known else {}

    @classmethod
    def check(cls, rows: TermRows, kind: str, settings: BankConfig) -> None:
        """Refuse held-out images in the bank, and further ones without features. Raises DataError: naming them."""
        bank_images(rows, settings.extra_ids)

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats."""
        bank = self._bank = self._bank or self._encode(given)
        positive_B, reference_B = self._rows(given.batch.target_key_B), self._rows(given.batch.reference_key_B)
        known_BM = self._known(given) if self._valid or given.batch.positive_key_BK is not None else None
        loss_B, hidden = bank.loss(
            given.output.query_BD, positive_B, reference_B, self._temperature(given.output.temperature), known_BM
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
        """`[B, M]`: the row's further right answers, and (`mask_known`) targets of its reference and text elsewhere."""
        texts, keys = _words(given.batch.text), given.batch.reference_key_B.tolist()
        known_BM = torch.zeros(len(texts), len(self._plan.ids), dtype=torch.bool, device=given.output.query_BD.device)
        for row, query in enumerate(zip(keys, texts, strict=True)):
            known_BM[row, self._valid.get(query, [])] = True
        if given.batch.positive_key_BK is not None:
            row_K, column_K = torch.nonzero(given.batch.positive_key_BK >= 0, as_tuple=True)
            known_BM[row_K, self._rows(given.batch.positive_key_BK[row_K, column_K])] = True
        return known_BM


def _valid_rows(setup: TermSetup, place: dict[str, int]) -> dict[tuple[int, tuple[int, ...]], list[int]]:
    """(reference key, token ids of the text) -> bank rows of all its targets in triplets."""
    keys = {image: key for key, image in enumerate(setup.image_ids)}
    found: dict[tuple[int, tuple[int, ...]], list[int]] = defaultdict(list)
    for row in setup.every_text or setup.triplets:
        words = _words(setup.retriever.tokenize([row.modification]))[0]
        found[keys[row.reference_id], words].append(place[row.target_id])
    return dict(found)


def _words(text: TextBatch) -> list[tuple[int, ...]]:
    """Token ids of each text without its padding."""
    rows = zip(text.ids_BT.tolist(), text.mask_BT.tolist(), strict=True)
    return [tuple(token for token, real in zip(ids, mask, strict=True) if real) for ids, mask in rows]
