"""A large language model behind an engine as a rewriter."""

from collections.abc import Sequence
from functools import cached_property

from cirray.generators.base import Unwritten
from cirray.generators.engines.answers import line_defect
from cirray.generators.engines.base import Engine, Question
from cirray.generators.engines.config import ENGINES
from cirray.generators.rewriters.base import Ask, RewriterSetup
from cirray.generators.rewriters.config import REWRITERS, LmmRewriteConfig
from cirray.generators.rewriters.language import answer
from cirray.types import stable_id


@REWRITERS.register("lmm")
class LmmRewriter:
    """Asks one question a text; the engine is made at the first one."""

    def __init__(self, settings: LmmRewriteConfig, setup: RewriterSetup) -> None:
        """Nothing is asked yet."""
        self._settings, self._setup = settings, setup

    @cached_property
    def digest(self) -> str:
        """Over the engine and the instruction."""
        return stable_id("lmm-rewriter", self._engine.digest, self._settings.template)

    def rewrite(self, asks: Sequence[Ask]) -> list[str | Unwritten]:
        """The first line that the model writes of each question.

        Raises GenerationError: no server answers.
        """
        questions = [
            Question((self._settings.template.format(caption=ask.caption, modification=ask.modification),))
            for ask in asks
        ]  # fmt: skip
        replies = self._engine.ask(questions, lambda text: line_defect(answer(text)))
        return [Unwritten(reply.error) if reply.error else answer(reply.text) for reply in replies]

    @cached_property
    def _engine(self) -> Engine:
        settings = self._settings.engine
        return ENGINES.get(settings.kind)(settings.settings, self._setup.device)
