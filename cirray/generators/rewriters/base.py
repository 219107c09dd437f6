"""The rewriter interface and registry: caption of the reference + modification -> caption of the target.

CIReVL's second step (training-free retrieval: caption, rewrite, search by text; docs/PAPERS.md#cirevl).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from cirray.core.registry import Registry
from cirray.generators.prompts import find_prompt
from cirray.types import stable_id


@dataclass(frozen=True)
class Ask:
    """One text to write: the reference's caption, and the change."""

    caption: str
    modification: str


@dataclass(frozen=True)
class RewriterSettings:
    """Settings of rewriters; each uses what it needs. `template` has `{caption}` and `{modification}`."""

    source: str = ""
    template: str = ""
    new_tokens: int = 80
    batch: int = 32
    device: str = "cpu"
    dtype: str = "float32"
    quantization: str = "none"


class Rewriter(Protocol):
    """Writes captions of wanted images; deterministic, so that answers can be cached."""

    @property
    def digest(self) -> str:
        """Identifies weights, instruction and decoding."""

    def rewrite(self, asks: Sequence[Ask]) -> list[str]:
        """One text per question, in order; an empty text is a failure."""


REWRITERS: Registry[Callable[[RewriterSettings], Rewriter]] = Registry(
    "rewriter", [f"cirray.generators.rewriters.{name}" for name in ("join", "language")]
)
"""Name -> constructor."""


def rewrite_prompt(version: str) -> tuple[str, str]:
    """The instruction called `data set/version`, and its name with a hash: `circo/1#1a2b3c4d`.

    An empty version means none: two empty texts.

    Raises:
        ConfigError: for an unknown version.
    """
    if not version:
        return "", ""
    text = find_prompt(version, "rewrite prompt", "cirray.generators.rewriters")
    return text, f"{version}#{stable_id('rewrite prompt', text)[:8]}"


def rewrite_key(ask: Ask, prompt_version: str, digest: str) -> str:
    """Key over caption, modification, instruction and rewriter: equal keys, equal answers."""
    return stable_id("rewrite", ask.caption, ask.modification, prompt_version, digest)
