"""The retriever interface: (reference image, text) -> query, image -> gallery vectors, and a similarity.

Training, evaluation, the index and the server use only this class. A new kind is one file that derives from it and
files a `RetrieverKind` under its name.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from torch import nn
from torch.nn import functional

from cirray.core.errors import ConfigError, DataError
from cirray.models.batch import RetrievalBatch, RetrieverOutput, TextBatch, Wanted
from cirray.models.config import RETRIEVERS
from cirray.models.description import retriever_digest, save_retriever
from cirray.models.scoring import inward_clamp, score
from cirray.models.text_processors import process
from cirray.types import Composition

__all__ = ["NOTHING_MORE", "RETRIEVERS", "Retriever", "RetrieverKind"]

NOTHING_MORE = Wanted()


class Retriever(nn.Module, ABC):
    """A retriever over cached tokens of a frozen vision tower (`patches_BPD`); all its vectors are L2-normalised."""

    kind: str
    """Name in the registry of kinds, also in the saved config."""
    config: Any
    """Its configuration, a `Config` with the fields `embed_dim` (width of the vectors) and `similarity`."""
    patch_width: int
    """Width of the frozen tower's tokens."""
    raw_temperature: nn.Parameter
    """Temperature of the contrastive loss, one element, before any clamp."""
    temperature_range: tuple[float, float] | None = None
    """Range of a learned temperature; None: free."""

    state_depends_on_text: bool = False
    """Whether the result of `encode_reference` depends on a text, so that it must not be cached by image."""

    @property
    def temperature(self) -> torch.Tensor:
        """The temperature of the contrastive loss, inside its range."""
        if self.temperature_range is None:
            return self.raw_temperature[0]
        return inward_clamp(self.raw_temperature[0], *self.temperature_range)

    @property
    def reads_pictures(self) -> bool:
        """Whether references are pictures (uint8, as the tower's transform makes them) in place of tokens."""
        return False

    @property
    def device(self) -> torch.device:
        """Device of the weights, found without naming one: ZeRO 3 would gather it, on whatever thread this is."""
        return next(iter(self._parameters.values())).device  # type: ignore[union-attr]

    @property
    def digest(self) -> str:
        """Digest of configuration, vocabulary and weights: equal for encoders that give equal vectors."""
        return retriever_digest(self)

    @property
    def target_digest(self) -> str:
        """Digest of the target side; the whole encoder's if query and target side share weights."""
        return self.digest

    @property
    def index_digests(self) -> tuple[str, str]:
        """Digests of the encoders whose indexes this one can search: its target side's and its own."""
        return (self.target_digest, self.digest)

    def target_weights(self) -> dict[str, nn.Parameter]:
        """Weights that gallery vectors depend on; all of them by default."""
        return dict(self.named_parameters())

    @property
    def text_processor(self) -> str:
        """Name of the text processor applied before tokenizing; `none` for kinds without such a field."""
        return str(getattr(self.config, "text_processor", "none"))

    @final
    def processed(self, texts: Sequence[str]) -> list[str]:
        """Texts after the text processor, which may leave empty ones."""
        return list(process(self.text_processor, texts))

    @final
    def tokenize(self, texts: Sequence[str]) -> TextBatch:
        """Token ids of texts, after the text processor, on the model's device. Raises DataError: for an empty list."""
        return self.token_ids(self.processed(texts))

    @abstractmethod
    def token_ids(self, texts: Sequence[str]) -> TextBatch:
        """Token ids of processed texts on the model's device (callers use `tokenize`).

        Raises DataError for an empty list.
        """

    @abstractmethod
    def encode_reference(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The part of the query that does not depend on the text (cacheable), first dimension B."""

    @abstractmethod
    def compose(self, state: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """Query vectors `[B, D]` of reference states and texts, norm 1."""

    @property
    def composition(self) -> Composition:
        """How it makes a query of picture and text; here: in one way that no weight moves."""
        return Composition(self.kind)

    def compose_weighted(self, state: torch.Tensor, text: TextBatch, share_B: torch.Tensor) -> torch.Tensor:
        """As `compose`, with the text's share of each query (0 to 1), for kinds whose composition has one.

        Raises DataError when it has none.
        """
        raise DataError(
            f"This model composes by {self.composition.name!r}, in which the text has no weight; leave weight out."
        )

    @property
    def reads_text_alone(self) -> bool:
        """Whether it has query vectors of texts alone (`encode_text`)."""
        return type(self).encode_text is not Retriever.encode_text

    def encode_text(self, text: TextBatch) -> torch.Tensor:
        """Query vectors `[B, D]` of texts alone, norm 1.

        Raises DataError for kinds that read a text only beside a picture.
        """
        raise DataError(f"A retriever of kind {self.kind!r} reads a text only beside a picture; give one.")

    def encode_picture(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Query vectors `[B, D]` of pictures alone, norm 1: the mean of their gallery tokens."""
        return functional.normalize(self.encode_gallery(patches_BPD).mean(dim=1), dim=-1)

    @abstractmethod
    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Gallery tokens `[B, Q, D]`, each of norm 1 (Q = 1 for `similarity: dot`)."""

    def encode_negatives(self, batch: RetrievalBatch) -> torch.Tensor | None:
        """Gallery tokens `[M, Q, D]` of the batch's hard negatives, where it has any; part of every `forward`."""
        return None if batch.negative_MPD is None else self.encode_gallery(batch.negative_MPD)

    @abstractmethod
    def forward(self, batch: RetrievalBatch, wanted: Wanted = NOTHING_MORE) -> RetrieverOutput:
        """All outputs that an objective needs, in one forward pass.

        Raises ConfigError for an output that this kind does not make.
        """

    def changed(self, settings: Mapping[str, Any]) -> "Retriever":
        """The same weights with other settings, for kinds with settings that weights do not fix.

        Raises ConfigError when it has none.
        """
        no_changes({"kind": self.kind}, settings, "the checkpoint")

    def score(self, query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
        """Similarities `[B, N]` by the package's one scorer."""
        return score(query_BD, gallery_NQD)

    def save(self, folder: Path) -> None:
        """Write configuration, weights (safetensors) and vocabulary; `load_retriever` reads them."""
        save_retriever(self, folder)

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """Content of `config.json`, plain values: `retriever`, the configuration, and what else loading needs."""

    @abstractmethod
    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files into an existing folder."""

    @abstractmethod
    def vocabulary(self) -> Mapping[str, int]:
        """Word piece -> id; part of the digest."""

    def refuse(self, wanted: Wanted, known: frozenset[str] = frozenset()) -> None:
        """Refuse unknown names in `Wanted.more`. Raises ConfigError: naming the output and this kind's outputs."""
        unknown = sorted(wanted.more - known)
        if unknown:
            makes = f"It makes: {', '.join(sorted(known))}." if known else "It makes none."
            raise ConfigError(
                f"A loss term needs the output {unknown[0]!r} of a {self.kind!r} retriever. {makes} Use another term, "
                "or another encoder."
            )


def no_changes(description: Mapping[str, Any], settings: Mapping[str, Any], place: str) -> NoReturn:
    """The check of a kind with no setting that could be changed in a checkpoint. Raises ConfigError: always."""
    raise ConfigError(
        "encoder builds a new network; empty init and qformer_source, or leave encoder out: a retriever of kind "
        f"{description['kind']!r} has no setting that could be changed in a checkpoint."
    )


@dataclass(frozen=True)
class RetrieverKind:
    """How retrievers of one kind are made, and what can be said of them before that."""

    build: Callable[[Any, Sequence[str], int, int], Retriever]
    """(its own settings, training texts whose words it must know, patch width, seed) -> one with start weights."""
    load: Callable[[Mapping[str, Any], Path], Retriever]
    """(saved description, its folder) -> one whose weights are then replaced."""
    check: Callable[[Any, int], None] | None = None
    """(its own settings, patch width): refuses what `build` refuses, without weights; None: building alone tells."""
    check_changes: Callable[[Mapping[str, Any], Mapping[str, Any], str], object] = no_changes
    """(saved description, settings, name of the checkpoint): refuses settings that the weights fix."""


@contextmanager
def torch_seed(seed: int) -> Iterator[None]:
    """Inside, random draws depend on the seed alone; afterwards torch's generator of the CPU is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
