"""The reranker interface: a query and its first answers in, one score an answer out; and the order that follows.

Shapes: K answers of a query, P patches, W width of the tower's tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image

from cirray.core.config import Config
from cirray.core.errors import DataError, GenerationError
from cirray.core.log import get_logger
from cirray.generators.rerankers.config import RERANKERS, RerankChoice, RerankerConfig

_LOG = get_logger(__name__)
Listed = Sequence[tuple[str, float]]
"""Answers of a query, best first, with the retriever's scores."""
Remember = Callable[[Mapping[str, Any], Callable[[Sequence[Any]], Sequence[Any]]], Mapping[str, Any]]
"""(questions by key, what answers some of them in order) -> an answer of every key, from memory where it is there.
Answers are values that JSON holds."""
SettingsT = TypeVar("SettingsT", bound=Config, contravariant=True)


class Sights(Protocol):
    """The gallery as rerankers see it."""

    def patches(self, ids: Sequence[str]) -> torch.Tensor:
        """Tokens `[K, P, W]` of the checkpoint's vision tower."""

    def image(self, image_id: str) -> Image.Image:
        """The picture. Raises DataError: there is none, or it cannot be read."""

    def picture_key(self, image_id: str) -> str:
        """Equal for equal pictures alone. Raises DataError: there is none."""


@dataclass(frozen=True)
class Asked:
    """A query, and the answers that are to be scored, best first."""

    text: str | None
    ids: tuple[str, ...]
    scores: tuple[float, ...]
    """The retriever's, one an answer."""
    sights: Sights
    reference: Image.Image | str | None = None
    """The reference picture, or its id among the sights; None: the query has none, or several."""


class Reranker(Protocol):
    """Scores answers; higher is better."""

    @property
    def told(self) -> str:
        """What a report says of it beside its kind; mostly nothing."""

    def scores(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """Scores `[K]` of every query's answers; NaN for one that could not be scored.

        Raises:
            GenerationError: nothing can be scored now.
        """


def no_memory(asked: Mapping[str, Any], ask: Callable[[Sequence[Any]], Sequence[Any]]) -> Mapping[str, Any]:
    """Asks every question: see `Remember`."""
    return dict(zip(asked, ask(list(asked.values())), strict=True))


@dataclass(frozen=True)
class RerankSetup:
    """What a reranker is made with."""

    encoder: Any
    """The retriever whose answers it scores."""
    device: str = "cpu"
    remember: Remember = no_memory
    """Keeps answers that cost much, so that a run that is done again need not ask for them."""


class MakeReranker(Protocol[SettingsT]):
    """Makes a reranker, ready to score."""

    def __call__(self, settings: SettingsT, setup: RerankSetup) -> Reranker:
        """By its settings, of the class that it is registered with.

        Raises:
            ConfigError: when the retriever lacks what it needs.
        """


class Reranking:
    """A reranker and how many answers it is shown; `unscored` counts the queries whose order it left as it was."""

    def __init__(self, choice: RerankChoice, encoder: Any, device: str = "cpu", remember: Remember = no_memory) -> None:
        """Make the reranker.

        Raises:
            ConfigError: when the retriever lacks what it needs.
            GenerationError: no server answers.
        """
        self.choice, self.top, self.unscored = choice, choice.top, 0
        assert isinstance(choice.settings, RerankerConfig)
        self._needs_reference = choice.settings.needs_reference
        self._reranker = RERANKERS.get(choice.kind)(choice.settings, RerankSetup(encoder, device, remember))

    def describe(self) -> str:
        """What it does, for reports."""
        return self.choice.describe() + (f", {self._reranker.told}" if self._reranker.told else "")

    def done(self) -> str:
        """What it did with all queries, for reports; a warning where some kept their order."""
        if not self.unscored:
            return self.describe()
        kept = f"{self.unscored:,} queries keep the retriever's order, as not all their answers could be scored"
        _LOG.warning("%s: %s", self.describe(), kept)
        return f"{self.describe()}; {kept}"

    def orders(self, asked: Sequence[Asked]) -> list[np.ndarray | None]:
        """Level `[K]` (int64) of every query's answers, higher is better and equal for equal scores; None for a query
        that cannot be scored, or has an answer that could not be.

        Raises GenerationError: nothing can be scored now.
        """
        able = [place for place, item in enumerate(asked) if self._can(item)]
        found = dict(zip(able, self._reranker.scores([asked[place] for place in able]), strict=True)) if able else {}
        levels: list[np.ndarray | None] = [None] * len(asked)
        for place, scores_K in found.items():
            if not np.isnan(scores_K).any():
                levels[place] = np.unique(scores_K, return_inverse=True)[1]
        self.unscored += sum(level is None for level in levels)
        return levels

    def ordered(self, asked: Sequence[Asked], lists: Sequence[Listed]) -> list[Listed]:
        """Lists of answers with the first ones in their new order, at the retriever's scores. Where nothing can be
        scored now they stay as they are, with a warning: a search is not lost with its reranker.
        """
        try:
            levels = self.orders(asked)
        except (DataError, GenerationError) as error:
            _LOG.warning("the answers keep the retriever's order, since they cannot be scored again: %s", error)
            return list(lists)
        return [
            left if level_K is None else [*(left[at] for at in _by_level(level_K)), *left[len(level_K) :]]
            for left, level_K in zip(lists, levels, strict=True)
        ]

    def _can(self, item: Asked) -> bool:
        return bool(item.ids) and item.text is not None and (item.reference is not None or not self._needs_reference)


def _by_level(level_K: np.ndarray) -> list[int]:
    """Places of answers by their levels, best first; equal ones keep their order."""
    return [int(place) for place in np.argsort(-level_K, kind="stable")]
