"""A large multimodal model behind an engine as a reranker: one question an answer, with both pictures."""

import math
import re
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image

from cirray.core.errors import DataError
from cirray.core.log import get_logger
from cirray.data.pixels import thumbnail
from cirray.generators.engines.answers import first_object
from cirray.generators.engines.base import Question, Shot
from cirray.generators.engines.config import ENGINES
from cirray.generators.pictures import LatestShots
from cirray.generators.rerankers.base import Asked, RerankSetup, no_memory
from cirray.generators.rerankers.config import RERANKERS, LmmRerankConfig

_LOG = get_logger(__name__)
_HIGHEST = 10.0
_KEPT = 1024
"""Pictures that stay in memory as they are sent, about 50 MB: the same ones come up for many queries."""
_SCHEMA = {
    "type": "object", "properties": {"score": {"type": "integer", "minimum": 0, "maximum": 10}}, "required": ["score"],
    "additionalProperties": False,
}  # fmt: skip
_SLOT = re.compile(r"(\{reference\}|\{candidate\}|\{text\})")


@RERANKERS.register("lmm")
class LmmReranker:
    """Scores are the model's, 0 to 10."""

    told = ""

    def __init__(self, settings: LmmRerankConfig, setup: RerankSetup) -> None:
        """Make the engine.

        Raises:
            ArtifactError: no model can be loaded.
            GenerationError: no server answers.
        """
        self._settings, self._remember, self._warned = settings, setup.remember, False
        self._latest = LatestShots(_KEPT)
        self._engine = ENGINES.get(settings.engine.kind)(settings.engine.settings, setup.device)

    def scores(self, asked: Sequence[Asked]) -> list[np.ndarray]:
        """See `Reranker.scores`; the questions of all queries are open together."""
        keys: list[list[str]] = []
        questions: dict[str, Question] = {}
        for item in asked:
            try:
                own = self._questions(item)
            except DataError:  # a picture that cannot be read: the query keeps its order
                own = []
            keys.append([question.key(self._named) for question in own])
            questions |= zip(keys[-1], own, strict=True)
        told = self._remember(questions, self._ask)
        reason = next((told[key][1] for key in questions if told[key][1]), "")
        if reason and not self._warned:
            _LOG.warning("an answer could not be scored, so its query keeps the retriever's order: %s", reason)
            self._warned = True
        return [
            np.array([told[key][0] for key in own], dtype=np.float64) if own else np.full(len(item.ids), math.nan)
            for item, own in zip(asked, keys, strict=True)
        ]

    @cached_property
    def _named(self) -> str:
        """The engine's digest, which takes time for a model on disk; empty where nothing is remembered."""
        return "" if self._remember is no_memory else self._engine.digest

    def _ask(self, questions: Sequence[Question]) -> list[tuple[float | None, str]]:
        """Score and, where there is none, the reason."""
        replies = self._engine.ask(questions, _defect)
        return [(None if reply.error else _score(reply.text), reply.error) for reply in replies]

    def _questions(self, item: Asked) -> list[Question]:
        assert item.reference is not None
        reference = self._shot(item, item.reference)
        pieces = [piece for piece in _SLOT.split(self._settings.template) if piece]
        questions = []
        for name in item.ids:
            slots: dict[str, str | Shot] = {
                "{reference}": reference,
                "{candidate}": self._shot(item, name),
                "{text}": item.text or "",
            }
            questions.append(Question(tuple(slots.get(piece, piece) for piece in pieces), _SCHEMA))
        return questions

    def _shot(self, item: Asked, picture: Image.Image | str) -> Shot:
        if isinstance(picture, str):
            sights, name = item.sights, picture
            return self._latest.get(sights.picture_key(name), lambda: self._shown(name, sights.image(name)))
        return self._shown("reference", picture)

    def _shown(self, name: str, picture: Image.Image) -> Shot:
        return Shot(name, thumbnail(picture, self._settings.side))


def _score(answer: str) -> float:
    """The score in an answer; NaN where there is none from 0 to 10."""
    said = first_object(answer, "score").get("score")
    if said is None:
        number = re.search(r"(?<![\d.])\d+(\.\d+)?", answer)
        said = number.group() if number else None
    try:
        score = float(said) if isinstance(said, int | float | str) else math.nan
    except ValueError:
        return math.nan
    return score if 0 <= score <= _HIGHEST else math.nan


def _defect(answer: str) -> str:
    return "has no score from 0 to 10" if math.isnan(_score(answer)) else ""
