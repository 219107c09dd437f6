"""Rewriters' settings. No torch."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Place
from cirray.core.registry import Registry
from cirray.generators.engines.config import EngineChoice
from cirray.generators.prompts import find_prompt, version_in
from cirray.models.towers.config import FrozenLanguageConfig
from cirray.types import stable_id

if TYPE_CHECKING:
    from cirray.generators.rewriters.base import MakeRewriter

_TABLE = ("rewrite prompt", "cirray.generators.rewriters")


class RewriterConfig(Config):
    """Base of all rewriters' settings, and the settings of one without its own."""

    @property
    def prompt_version(self) -> str:
        """Version of the instruction and hash of its words, kept with every text; empty: none."""
        return ""


class InstructedConfig(RewriterConfig):
    """A model that follows an instruction."""

    prompt: Annotated[str, version_in(*_TABLE)]
    """Version of the instruction: `circo/1`, `cirr/1`, `fashioniq/1`, `plain/1`."""

    @property
    def template(self) -> str:
        """The instruction, with `{caption}` and `{modification}`."""
        return find_prompt(self.prompt, *_TABLE)

    @property
    def prompt_version(self) -> str:
        """`circo/1#1a2b3c4d`."""
        return f"{self.prompt}#{stable_id('rewrite prompt', self.template)[:8]}"


class LanguageConfig(InstructedConfig, FrozenLanguageConfig):
    """A language model in this process."""

    source: Place
    """Folder or hub id of the language model."""
    new_tokens: int = Field(80, ge=1)
    """Longest answer in tokens; CLIP reads 77."""
    chat: Literal["auto", "off", "turns"] = "auto"
    """How the instruction is told. `turns`: its examples are turns of a conversation in the tokenizer's chat template;
    `off`: one text that the model goes on with; `auto`: `turns` where there is a chat template."""


class LmmRewriteConfig(InstructedConfig):
    """A large language model behind an engine."""

    engine: EngineChoice
    """What answers: a server, or a model in this process."""


REWRITERS: "Registry[MakeRewriter[Any]]" = Registry(
    "rewriter", [f"cirray.generators.rewriters.{name}" for name in ("join", "language", "lmm")],
    {"join": RewriterConfig, "language": LanguageConfig, "lmm": LmmRewriteConfig}, RewriterConfig,
)  # fmt: skip
"""Name -> constructor."""


class RewriterChoice(Component):
    """What writes the captions of the wanted images."""

    registry = REWRITERS
    kind: str = "join"
    """Name of the rewriter: with `language`, a language model follows an instruction, with `lmm` one behind an
    endpoint; `join` says "{caption}, {modification}" without a model: the simple twin, for the embedded world, whose
    language model cannot rewrite."""

    @property
    def prompt_version(self) -> str:
        """See `RewriterConfig.prompt_version`."""
        return self.settings.prompt_version if isinstance(self.settings, RewriterConfig) else ""
