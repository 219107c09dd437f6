"""The simple twin of a language model: "{caption}, {modification}".

It is also the embedded world's rewriter, whose small language model cannot follow instructions: a row made with it
shows what caption plus text give, not what CIReVL gives.
"""

from collections.abc import Sequence

from cirray.generators.rewriters.base import Ask, RewriterSetup
from cirray.generators.rewriters.config import REWRITERS, RewriterConfig


@REWRITERS.register("join")
class JoinRewriter:
    """Caption, comma, modification."""

    digest = "join/1"

    def __init__(self, settings: RewriterConfig, setup: RewriterSetup) -> None:
        """There are no settings."""

    def rewrite(self, asks: Sequence[Ask]) -> list[str]:
        """One text per question."""
        return [f"{ask.caption}, {ask.modification}" for ask in asks]
