"""Rerankers' settings. No torch."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Effort
from cirray.core.registry import Registry
from cirray.generators.engines.config import EngineChoice
from cirray.generators.prompts import find_prompt, version_in

if TYPE_CHECKING:
    from cirray.generators.rerankers.base import MakeReranker

_TABLE = ("rerank prompt", "cirray.generators.rerankers")


class RerankerConfig(Config):
    """Base of all rerankers' settings, and the settings of one without its own."""

    needs_reference: ClassVar[bool] = False
    """Whether it can only score answers to a query with one reference picture."""


class MatchingConfig(RerankerConfig):
    """The checkpoint's own matching head (VDG): does the text lead to this picture?"""

    weight: float | None = Field(None, ge=0)
    """What the head's log-odds count beside the retriever's similarity over its temperature; null: what training chose
    on held-out triplets. 0 keeps the retriever's order."""
    batch: Effort[int] = Field(64, ge=1)
    """Answers in one forward pass."""


class LmmRerankConfig(RerankerConfig):
    """A large multimodal model behind an engine, which sees the reference and one answer at a time."""

    needs_reference: ClassVar[bool] = True
    engine: EngineChoice
    """What answers: a server, or a model in this process."""
    prompt: Annotated[str, version_in(*_TABLE)] = "rerank/1"
    """Version of the question."""
    side: int = Field(448, ge=32)
    """Longest side in pixels of the pictures that the model sees."""

    @property
    def template(self) -> str:
        """The question, with `{reference}`, `{candidate}` and `{text}`."""
        return find_prompt(self.prompt, *_TABLE)


RERANKERS: "Registry[MakeReranker[Any]]" = Registry(
    "reranker", [f"cirray.generators.rerankers.{name}" for name in ("matching", "lmm")],
    {"matching": MatchingConfig, "lmm": LmmRerankConfig}, RerankerConfig,
)  # fmt: skip
"""Name -> constructor."""


class RerankChoice(Component):
    """What scores the first answers of a query again, and how many. Ties keep the retriever's order."""

    registry = RERANKERS
    kind: str
    """Name of the reranker: `matching`, the matching head that VDG trains beside the retriever's own scores, or `lmm`,
    a large model."""
    top: int = Field(50, ge=2)
    """Answers of each query that are scored again; those after them stay where they are."""

    def describe(self) -> str:
        """What it does, for reports."""
        return f"the first {self.top} answers scored again ({self.kind})"
