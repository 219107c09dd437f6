"""What `cirray train-generator` asks of a network, and how networks of a kind are made and saved."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cirray.core.errors import ArtifactError
from cirray.generators.base import ModificationGenerator
from cirray.generators.config import DecodingConfig
from cirray.models.batch import Movable
from cirray.models.towers.language import LanguageModel


@dataclass(frozen=True)
class Answers(Movable):
    """Answer token ids `ids_BT` (end token last, padded on the right) and `mask_BT` (True for answer tokens).

    `places_N`: where the mask is True, row by row; made from it on its device where it is not given.
    """

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor
    places_N: torch.Tensor | None = None

    @property
    def places(self) -> torch.Tensor:
        """Positions of the answer tokens among all `B * T`."""
        return self.mask_BT.flatten().nonzero()[:, 0] if self.places_N is None else self.places_N


@dataclass(frozen=True)
class AnswerLoss:
    """Sum of the cross-entropy over answer tokens, and their number."""

    total: torch.Tensor
    tokens: torch.Tensor


class TrainableGenerator(nn.Module, ABC):
    """A network that learns to write the text of an image pair."""

    prompt_version: str = ""
    """Version of the instruction, for the manifest."""

    def told(self) -> dict[str, Any]:
        """What else a manifest says of the network."""
        return {}

    def enter(self, stage: Literal["alignment", "answers"]) -> None:
        """Make only what a stage trains trainable; here all is, always."""

    @abstractmethod
    def encode_answers(self, texts: Sequence[str]) -> Answers:
        """Token ids of the texts that are to be written."""

    @abstractmethod
    def forward(self, reference_BPD: torch.Tensor, target_BPD: torch.Tensor, answers: Answers) -> AnswerLoss:
        """The loss of the answers of image pairs."""

    def tuned_state(self) -> dict[str, torch.Tensor]:
        """Weights that some stage trains."""
        return self.state_dict()

    def load_tuned(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load weights from `tuned_state`. Raises ArtifactError: when they are of another model."""
        if set(state) != set(self.tuned_state()):
            odd = sorted(set(state) ^ set(self.tuned_state()))[:3]
            raise ArtifactError(f"These weights are of another generator: {odd}. Choose another out.")
        self.load_state_dict(state, strict=False)


@dataclass(frozen=True)
class Given:
    """What a new network stands on: the frozen language model, the width of the vision tokens, start weights."""

    language: LanguageModel
    patch_width: int
    source: str = ""
    """A BLIP-2 or InstructBLIP checkpoint; only for kinds whose settings' `check` allows one."""
    source_projection: bool = True
    """Whether its projection is the start too."""


@dataclass(frozen=True)
class TrainableKind:
    """How networks of one kind are made, saved and put to work. `GENERATORS` reads what `save` wrote."""

    build: Callable[[Any, Given], Any]
    """(its own settings, what it stands on) -> a `TrainableGenerator`, random weights from torch's global generator."""
    save: Callable[[Any, Path], None]
    """(network, folder): writes `config.json`, with the kind, and the weights."""
    writer: Callable[[Any, DecodingConfig], ModificationGenerator]
    """(network, decoding) -> what writes texts of both directions, to evaluate it."""
