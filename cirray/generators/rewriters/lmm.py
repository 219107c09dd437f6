"""A large language model behind an engine as a rewriter."""

from collections.abc import Sequence
from functools import cached_property

from cirray.core.log import get_logger
from cirray.generators.engines.answers import line_defect
from cirray.generators.engines.base import Engine, Question
from cirray.generators.engines.config import ENGINES
from cirray.generators.rewriters.base import Ask, RewriterSetup
from cirray.generators.rewriters.config import REWRITERS, LmmRewriteConfig
from cirray.generators.rewriters.language import answer
from cirray.types import stable_id

_LOG = get_logger(__name__)


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

    def rewrite(self, asks: Sequence[Ask]) -> list[str]:
        """The first line that the model writes of each question; empty where it wrote none.

        Raises GenerationError: no server answers.
        """
        questions = [
            Question((self._settings.template.format(caption=ask.caption, modification=ask.modification),))
            for ask in asks
        ]  # fmt: skip
        replies = self._engine.ask(questions, lambda text: line_defect(answer(text)))
        for ask, reply in zip(asks, replies, strict=True):
            if reply.error:
                _LOG.warning("%r is not rewritten: %s", ask.modification[:80], reply.error)
        return [answer(reply.text) for reply in replies]

    @cached_property
    def _engine(self) -> Engine:
        settings = self._settings.engine
        return ENGINES.get(settings.kind)(settings.settings, self._setup.device)
