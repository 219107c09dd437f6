"""Engines' settings. No torch."""

from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Common, Effort, Place, Some
from cirray.core.registry import Registry

if TYPE_CHECKING:
    from cirray.generators.engines.base import MakeEngine


class AnswerConfig(Config):
    """How any engine answers."""

    max_tokens: int = Field(256, ge=1)
    """Longest answer in tokens."""
    temperature: float = Field(0.0, ge=0, le=2)
    """0: the likeliest answer."""


class HttpConfig(AnswerConfig):
    """A server with OpenAI's chat completions: vLLM, SGLang, Ray Serve LLM, `transformers serve`, a hosted one."""

    model: Common[str] = Field(min_length=1)
    """Name of the model as the server knows it."""
    endpoints: Common[Some[Effort[tuple[str, ...]]]] = ("http://127.0.0.1:8000/v1",)
    """Base URLs, `/v1` included, of servers of the same model; one that is dead costs a retry."""
    structured: Literal["auto", "off"] = "auto"
    """Ask for JSON by its schema. `auto`: until the server says that it cannot."""
    key_variable: Effort[str] = "CIRRAY_LMM_KEY"
    """Environment variable that holds the server's key; the key itself stands in no configuration."""
    certificates: Effort[Place] = ""
    """PEM file of further certificate authorities."""
    open_requests: Effort[int] = Field(16, ge=1, le=1024)
    """Requests that one actor has open at a time."""
    timeout_s: Effort[float] = Field(120.0, gt=0)
    """Seconds that the server has for an answer."""
    tries: Effort[int] = Field(6, ge=1, le=100)
    """Times that a question is asked, with growing pauses, when the server is busy, silent or answers nonsense."""
    picture_ids: Effort[bool] = False
    """Send a digest of every picture with it (`uuid`, as vLLM takes it), so that the server can reuse its encoder's
    work."""

    @field_validator("endpoints")
    @classmethod
    def _urls(cls, endpoints: tuple[str, ...]) -> tuple[str, ...]:
        for url in endpoints:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is no URL; one looks like http://127.0.0.1:8000/v1")
        return tuple(url.rstrip("/") for url in endpoints)

    @model_validator(mode="after")
    def _keyless(self) -> "HttpConfig":  # of the section, whose errors do not show values
        for parts in map(urlsplit, self.endpoints):
            if parts.username or parts.password or parts.query:
                raise ValueError(
                    f"the endpoint at {parts.hostname} has a name, a password or a query in its URL, which would be "
                    f"kept with what is written; put a key into the environment variable {self.key_variable}"
                )
        return self


class HfEngineConfig(AnswerConfig):
    """A model of Hugging Face in this process; slow, without a server."""

    source: Place
    """Folder or hub id of a model of pictures and texts, or of texts alone."""
    batch: Effort[int] = Field(8, ge=1)
    """Questions answered together."""
    tries: Effort[int] = Field(3, ge=1, le=100)
    """Times that a question is asked when its answer has a defect."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; `auto`: float32 on the CPU, else bfloat16."""


class RayLlmConfig(AnswerConfig):
    """vLLM in Ray Data's own stages (the extra `llm`), which `cirray generate` runs in place of its pool."""

    source: Place
    """Folder or hub id of the model."""
    structured: Literal["auto", "off"] = "auto"
    """Have JSON written by its schema; `off`: as the model likes."""
    engines: Effort[int] = Field(1, ge=1)
    """Engines side by side, each on GPUs of its own."""
    batch: Effort[int] = Field(64, ge=1)
    """Questions that an engine is handed together."""
    tries: Effort[int] = Field(3, ge=1, le=100)
    """Times that a question is asked when its answer has a defect: again after all others, by engines started anew."""
    accelerator: Effort[str] = ""
    """Kind of GPU by Ray's name, such as H100; empty: any."""
    engine_kwargs: dict[str, Any] = {}
    """vLLM's own settings: `{tensor_parallel_size: 2, max_model_len: 8192}`."""


ENGINES: "Registry[MakeEngine[Any]]" = Registry(
    "engine", [f"cirray.generators.engines.{name}" for name in ("http", "hf", "ray_llm")],
    {"http": HttpConfig, "hf": HfEngineConfig, "ray_llm": RayLlmConfig}, AnswerConfig,
)  # fmt: skip
"""Name -> constructor."""


class EngineChoice(Component):
    """What answers the questions."""

    registry = ENGINES
    kind: str = "http"
    """Name of the engine: `http`, a server with OpenAI's interface, `hf`, a model in this process, or `ray_llm`, vLLM
    in Ray Data's stages (`cirray generate` alone)."""
