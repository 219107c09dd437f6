"""A retriever in two halves: a query side that trains, and a frozen copy of the whole as its target side (SPN).

The second stage of SPN contrasts queries against images encoded once, so the gallery side must not move. Where query
and gallery share weights (SPRC, PTHA), the query side gets weights of its own; gallery vectors, and therefore indexes,
stay those of the retriever that was forked (docs/PAPERS.md#negative-bank).
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cirray.core.errors import ArtifactError, ConfigError, unknown_name
from cirray.models.base import NOTHING_MORE, RETRIEVERS, Retriever, RetrieverKind
from cirray.models.batch import RetrievalBatch, RetrieverOutput, TextBatch, Wanted
from cirray.models.composed import QFormerRetriever
from cirray.models.fusion.base import Fused
from cirray.models.fusion.two_pass import second_pass
from cirray.types import Composition

SCOPES = ("query_side", "second_pass")
"""The trained part of the query side: all of it (improved), or SPRC's second pass behind the frozen first (paper)."""


class ForkedRetriever(Retriever):
    """Queries by one retriever, gallery vectors by a frozen copy of it."""

    kind = "forked"

    def __init__(self, query: Retriever, gallery: Retriever, trains: str = "query_side") -> None:
        """Take both halves; the gallery's is frozen.

        Raises ConfigError for another name, or for `second_pass` when the retriever has none.
        """
        super().__init__()
        if trains not in SCOPES:
            raise ConfigError(unknown_name("part of the query side to train", trains, SCOPES))
        self.query, self.gallery, self.trains = query, gallery.requires_grad_(False).eval(), trains
        self.config, self.patch_width = query.config, query.patch_width
        if trains == "second_pass":
            self._freeze_first_pass()

    @property
    def raw_temperature(self) -> nn.Parameter:  # type: ignore[override]
        """The query side's."""
        return self.query.raw_temperature

    @property
    def device(self) -> torch.device:
        """The query side's."""
        return self.query.device

    @property
    def temperature(self) -> torch.Tensor:
        """The query side's."""
        return self.query.temperature

    @property
    def target_digest(self) -> str:
        """The frozen half's digest, that of the forked retriever, whose indexes stay valid."""
        return self.gallery.target_digest

    def target_weights(self) -> dict[str, nn.Parameter]:
        """The frozen half's."""
        return self.gallery.target_weights()

    def train(self, mode: bool = True) -> "ForkedRetriever":
        """Training mode for the query side; the frozen half never has dropout."""
        super().train(mode)
        self.gallery.eval()
        return self

    def token_ids(self, texts: Sequence[str]) -> TextBatch:
        """Token ids on the model's device. Raises DataError: for an empty list."""
        return self.query.token_ids(texts)

    def encode_reference(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The query side's."""
        return self.query.encode_reference(patches_BPD)

    def compose(self, state: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """Query vectors `[B, D]`, norm 1."""
        return self.query.compose(state, text)

    @property
    def composition(self) -> Composition:
        """The query side's."""
        return self.query.composition

    def compose_weighted(self, state: torch.Tensor, text: TextBatch, share_B: torch.Tensor) -> torch.Tensor:
        """The query side's."""
        return self.query.compose_weighted(state, text, share_B)

    @property
    def reads_text_alone(self) -> bool:
        """The query side's."""
        return self.query.reads_text_alone

    def encode_text(self, text: TextBatch) -> torch.Tensor:
        """The query side's."""
        return self.query.encode_text(text)

    @torch.no_grad()
    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Gallery tokens `[B, Q, D]` of the frozen half, each of norm 1."""
        return self.gallery.encode_gallery(patches_BPD)

    def forward(self, batch: RetrievalBatch, wanted: Wanted = NOTHING_MORE) -> RetrieverOutput:
        """As the query side's, with targets and references of the frozen half.

        Raises ConfigError for an output that the query side does not make.
        """
        # without reverse texts the query side's own targets are not used; it needs at least one row
        seen = replace(batch, negative_MPD=None)
        seen = seen if wanted.reverse else replace(seen, target_BPD=batch.target_BPD[:1])
        output = self.query(seen, replace(wanted, references=False))
        references_BQD = self.encode_gallery(batch.reference_BPD) if wanted.references else None
        return replace(
            output, target_BQD=self.encode_gallery(batch.target_BPD), reference_BQD=references_BQD,
            negative_MQD=self.encode_negatives(batch),
        )  # fmt: skip

    def changed(self, settings: Mapping[str, Any]) -> "ForkedRetriever":
        """Both halves with other settings; the frozen one keeps its temperature.

        Raises ConfigError for a setting that their weights fix.
        """
        gallery = self.gallery.changed(settings)
        with torch.no_grad():
            gallery.raw_temperature.copy_(self.gallery.raw_temperature)
        return ForkedRetriever(self.query.changed(settings), gallery, self.trains)

    def description(self) -> dict[str, Any]:
        """The description of one half, and the trained part."""
        query = {"kind": self.query.kind, "patch_width": self.patch_width, **self.query.description()}
        return {"query": query, "retriever": {"trains": self.trains}}

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.query.save_words(folder)

    def vocabulary(self) -> Mapping[str, int]:
        """Word piece -> id."""
        return self.query.vocabulary()

    def _freeze_first_pass(self) -> None:
        query, gallery = self.query, self.gallery
        _check_second_pass(query.kind, query.config.to_dict())
        assert isinstance(query, QFormerRetriever) and isinstance(gallery, QFormerRetriever)
        query.fusion = FrozenFirstPass(gallery)


class FrozenFirstPass:
    """Fusion head: prototypes by a frozen retriever for each (image, text), the second pass by the trained one.

    The released SPN code caches prototypes by image although they depend on the text.
    """

    def __init__(self, frozen: QFormerRetriever) -> None:
        """Take the retriever that makes the prototypes."""
        self._frozen = frozen

    def __call__(self, model: QFormerRetriever, patches_BPD: torch.Tensor, text: TextBatch) -> Fused:
        """Query of reference patches and text."""
        with torch.no_grad():
            prototype_BQW = self._frozen.prototypes(patches_BPD, text)
        return second_pass(model, prototype_BQW, text)


def fork(retriever: Retriever, trains: str = "query_side") -> ForkedRetriever:
    """A retriever with equal vectors whose target side is a frozen deep copy; `retriever` itself is the query side."""
    return ForkedRetriever(retriever, copy.deepcopy(retriever), trains)


def fork_for_query_tuning(retriever: Retriever, trains: str = "query_side") -> Retriever:
    """A retriever with equal vectors whose target side stays frozen while a part of the query side (`SCOPES`) trains.

    One whose target side has no weights, or that is forked already, stays as it is.

    Raises ConfigError for a part that this kind does not have, or another one than a fork was made for.
    """
    if isinstance(retriever, ForkedRetriever):
        _check_same_part(retriever.trains, trains)
        return retriever
    has_weights = bool(retriever.target_weights())
    return fork(retriever, trains) if has_weights or trains != "query_side" else retriever


def check_query_tuning(description: Mapping[str, Any], trains: str) -> None:
    """Refuse what `fork_for_query_tuning` refuses, from a retriever's description. Raises ConfigError: as that."""
    if description["kind"] == ForkedRetriever.kind:
        _check_same_part(str(description["retriever"]["trains"]), trains)
    elif trains == "second_pass":
        _check_second_pass(str(description["kind"]), description["retriever"])


def _check_same_part(forked: str, wanted: str) -> None:
    if forked != wanted:
        raise ConfigError(
            f"The checkpoint was forked to train its {forked!r}, the run asks for {wanted!r}. Set "
            f"training.terms.bank_infonce.trains={forked}, or start from a checkpoint that is not forked."
        )


def _check_second_pass(kind: str, settings: Mapping[str, Any]) -> None:
    if kind != QFormerRetriever.kind or settings["fusion"]["kind"] != "two_pass":
        raise ConfigError(
            f"A {kind!r} retriever has no second pass to train alone. Set "
            "training.terms.bank_infonce.trains=query_side."
        )


def inner_description(description: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of a fork's query side; any other one as it is."""
    return dict(description["query"]) if description["kind"] == ForkedRetriever.kind else description


def _check_changes(description: Mapping[str, Any], settings: Mapping[str, Any], place: str) -> None:
    query = inner_description(description)
    RETRIEVERS.get(str(query["kind"])).check_changes(query, settings, place)


def _load(description: Mapping[str, Any], folder: Path) -> ForkedRetriever:
    inner = description["query"]
    if inner["kind"] == ForkedRetriever.kind:
        raise ArtifactError(f"{str(folder)!r} holds a fork of a fork, which nothing here writes.")
    halves = [RETRIEVERS.get(str(inner["kind"])).load(inner, folder) for _ in range(2)]
    return ForkedRetriever(halves[0], halves[1], str(description["retriever"]["trains"]))


def _build(settings: Any, texts: Sequence[str], patch_width: int, seed: int) -> ForkedRetriever:
    raise ConfigError("A forked retriever starts from a trained checkpoint (init=...), not from random weights.")


RETRIEVERS.register(ForkedRetriever.kind)(RetrieverKind(_build, _load, check_changes=_check_changes))
