"""Configuration of modification-text generators: the model, and how it decodes. No torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cirray.core.components import Component, filed
from cirray.core.config import Config
from cirray.core.errors import ConfigError, reason_of
from cirray.core.fields import Common, Effort, Kind, Place
from cirray.core.registry import Registry
from cirray.data.config import DataConfig, ImageLimits
from cirray.generators.engines.config import EngineChoice
from cirray.generators.prompts import find_prompt, is_version, own_words, prompt, version_in
from cirray.models.config import QFormerConfig
from cirray.models.towers.config import FrozenLanguageConfig
from cirray.types import stable_id

if TYPE_CHECKING:
    from cirray.generators.base import MakeGenerator
    from cirray.generators.trainable import TrainableKind

Pass = Literal["reference", "target", "difference"]


class LoraConfig(Config):
    """Low-rank adapters on the language model (peft)."""

    rank: int = Field(8, ge=1)
    """Rank of each update."""
    alpha: int = Field(16, ge=1)
    """Scale of the updates is alpha / rank."""
    modules: tuple[str, ...] | None = None
    """Names of the adapted linear layers; null adapts all of them but the head."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on what goes into the updates."""
    in_alignment: bool = True
    """Train the adapters in the alignment too, where that goes through the language model; VDG does not."""


class ReaderConfig(QFormerConfig):
    """The generator's Q-Former."""

    initializer_range: float = Field(0.04, gt=0)
    """Standard deviation of the start weights (BLIP-2's own: 0.02)."""


class TrainableConfig(Config):
    """What the settings of every trainable generator can say; the settings of one that has none of its own."""

    def check(self, run: Any) -> None:
        """Look at the run that trains it; here it must give nothing that only an MTG can use.

        Raises ValueError naming the setting to change.
        """
        if run.qformer_source or run.alignment not in ("auto", "none"):
            name = "qformer_source" if run.qformer_source else "alignment"
            raise ValueError(
                f"{name}={getattr(run, name)!r} is for a generator of the kind 'mtg'; generator.kind is "
                f"{run.generator.kind!r}. Leave it out."
            )


class GeneratorConfig(TrainableConfig):
    """A generator after the MTG of Zhou et al. (2025): Q-Former passes, one projection, a language model."""

    qformer: ReaderConfig = ReaderConfig()
    """The one Q-Former of all passes (paper: 768, 12 layers, 32 queries)."""
    passes: tuple[Pass, ...] = ("reference", "target")
    """Which query groups the language model reads, in this order. The paper's are reference, target, difference."""
    role_tags: bool = False
    """Learned reference and target embeddings on the patches of the difference pass, which is symmetric without."""
    separators: tuple[str, ...] = ()
    """Texts before each query group (improved, for large models), or empty for none (paper)."""
    opening: str = ""
    """Version of a prompt before the first query group (VDG: system lines and request), or empty for none."""
    prompt: str = "change/1"
    """The instruction: a version (`change/1`), words of your own, or a text file with them. It enters the language
    model last, and the Q-Former in the difference pass."""
    frame: Literal["auto", "chat", "line", "plain"] = "auto"
    """What stands around the request. `chat`: a user's turn in the tokenizer's chat template; `line`: a line break
    after it; `plain`: nothing (paper). `auto`: `chat` where there is a template, else `line` where the tokenizer would
    glue the answer to the instruction, else `plain`."""
    instruction_length: int = Field(128, ge=1)
    """Tokens of the instruction; a longer one is cut on the left."""
    answer_length: int = Field(256, ge=2)
    """Tokens of an answer, end token included; a longer one is cut on the right."""
    reader_tuning: Literal["always", "alignment", "never"] = "always"
    """When the Q-Former is trained: always (MTG), in the alignment alone (VDG, none pretrained), or never (VDG)."""
    projection_bias: bool = True
    """Whether the projection has a bias; VDG's has not."""
    tuning: Literal["frozen", "lora", "full"] = "frozen"
    """Which weights of the language model are trained: none (the method), adapters, or all."""
    lora: LoraConfig = LoraConfig()
    """Adapters of `tuning: lora`."""
    gradient_checkpointing: Effort[bool] = False
    """Trade compute for memory in a language model that is trained."""
    embed_language_model: bool = True
    """Copy the language model into the artifact; false keeps a reference to its folder or hub id."""

    @field_validator("prompt")
    @classmethod
    def _said(cls, value: str) -> str:
        return filed(own_words, value)

    @property
    def instruction(self) -> str:
        """The instruction's words."""
        return prompt(self.prompt) if is_version(self.prompt) else self.prompt

    @property
    def prompt_version(self) -> str:
        """Its version, or `own#` and a hash of the words; kept with every text."""
        return self.prompt if is_version(self.prompt) else f"own#{stable_id('generator prompt', self.prompt)[:8]}"

    @model_validator(mode="after")
    def _fits(self) -> "GeneratorConfig":
        if len(set(self.passes)) != len(self.passes) or not self.passes:
            raise ValueError(f"passes {self.passes} must name each pass once, and at least one")
        if self.separators and len(self.separators) != len(self.passes):
            raise ValueError(f"separators need one text per pass ({len(self.passes)}), got {len(self.separators)}")
        if self.role_tags and "difference" not in self.passes:
            raise ValueError("role_tags act on the difference pass; add it to passes or switch them off")
        return self

    def check(self, run: Any) -> None:
        """Refuse types of the language model's weights that training cannot use.

        Raises ValueError naming the setting to change.
        """
        if self.tuning == "full" and run.language_dtype != "float32":
            raise ValueError(
                f"language_dtype {run.language_dtype!r} loses small updates where the language model itself is "
                "trained; use float32 with training.precision=bf16, or generator.settings.tuning=lora"
            )
        if run.language_quantization == "none":
            return
        if self.tuning == "full":
            raise ValueError(
                "a quantised language model cannot be trained in full; set generator.settings.tuning=lora or frozen"
            )
        if self.embed_language_model:
            raise ValueError(
                "language_quantization needs generator.settings.embed_language_model=false: the artifact then names "
                "the language model instead of copying quantised weights"
            )


class DecodingConfig(Config):
    """How texts are decoded. All limits count *new* tokens."""

    beams: int = Field(1, ge=1)
    """Number of beams; 1 is greedy or, with `sample`, ancestral sampling."""
    sample: bool = False
    """Draw tokens instead of taking the best."""
    temperature: float = Field(1.0, gt=0)
    """Flattens (above 1) or sharpens (below 1) the distribution that is sampled."""
    top_k: int = Field(0, ge=0)
    """Number of best tokens that are sampled from, before `top_p`; 0: all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus: the smallest set of tokens with this probability is sampled."""
    min_new_tokens: int = Field(1, ge=1)
    """Tokens before an end token is allowed."""
    max_new_tokens: int = Field(48, ge=1)
    """Tokens after which a text is cut."""
    repetition_penalty: float = Field(1.0, ge=1)
    """Divides positive (multiplies negative) logits of tokens already written."""
    length_penalty: float = 1.0
    """Beam scores are divided by length to this power."""
    batch: Effort[int] = Field(128, ge=1)
    """Rows (a pair has two: forward and reverse) decoded together."""
    keep_unfinished: bool = False
    """Keep a text that met `max_new_tokens` without an end token, instead of rejecting it."""

    @model_validator(mode="after")
    def _fits(self) -> "DecodingConfig":
        if self.sample and self.beams > 1:
            raise ValueError("sample works with beams 1")
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} exceeds max_new_tokens {self.max_new_tokens}")
        return self


class SavedConfig(Config):
    """A generator that is read from an artifact."""

    source: Common[Annotated[Place, Kind("generator")]] = "@generator"
    """Generator artifact."""


class MtgConfig(SavedConfig, FrozenLanguageConfig):
    """A trained network, which decodes texts."""

    decoding: DecodingConfig = DecodingConfig()
    """How texts are decoded."""


_ROOM = 128
"""Tokens that a text and its reverse should have, with the JSON around them."""
_QUESTIONS = ("prompt version", "cirray.generators.engines")


class PicturesConfig(Config):
    """Base of the settings of a generator that looks at a pair's pictures."""

    data: DataConfig | None = None
    """Data set that has the pictures; null: no picture is looked at."""
    side: int = Field(448, ge=32, le=4096)
    """Longest side in pixels of a picture as the model sees it."""
    limits: ImageLimits = ImageLimits()
    """Limits on pictures."""

    @property
    def reads(self) -> Literal["pictures", "captions"]:
        """What the generator needs of a pair's images."""
        return "pictures" if self.data else "captions"


class LmmConfig(PicturesConfig):
    """A large multimodal model that is asked about both pictures, or a language model that reads their captions."""

    engine: EngineChoice
    """What answers: a server, or a model in this process."""
    captions: tuple[Annotated[Place, Kind("captions")], ...] = ()
    """Captions artifacts. With them the model reads captions and no picture, as a model without vision can."""
    prompt: Annotated[str, version_in(*_QUESTIONS)] = "edit/1"
    """Version of the question: `edit/1`."""
    prompt_file: Place = ""
    """Text file with a question of your own, with `{reference}`, `{target}` and, where the form of the answer is to be
    said, `{answer}` in it; empty: `prompt`."""
    texts: int = Field(1, ge=1, le=8)
    """Texts of a pair and direction, which differ, written in one answer; each is a triplet, or a rejected row where
    the model wrote fewer."""
    words: int = Field(40, ge=1)
    """Longest text in words; a longer one is asked for again, then rejected."""
    language: Literal["english", "latin", "any"] = "english"
    """What a text must be in, else it is asked for again, then rejected. `latin`: mostly Latin letters. `english`:
    these, and no more common words of German, French, Spanish, Italian, Portuguese or Dutch than English ones. `any`:
    not checked."""

    @model_validator(mode="after")
    def _sees(self) -> "LmmConfig":
        if bool(self.data) == bool(self.captions):
            raise ValueError("name either data, whose pictures the model sees, or captions, which it reads instead")
        return self

    @model_validator(mode="after")
    def _has_room(self) -> "LmmConfig":
        room = getattr(self.engine.settings, "max_tokens", None)
        if self.texts > 1 and room is not None and room < _ROOM * self.texts:
            raise ValueError(
                f"texts={self.texts} need longer answers than max_tokens={room}; set engine.settings.max_tokens to "
                f"{_ROOM * self.texts} or more"
            )
        return self

    @property
    def template(self) -> str:
        """The question, with its slots. Raises ConfigError for a file that cannot be read or lacks a slot."""
        return _own_question(self.prompt_file) if self.prompt_file else find_prompt(self.prompt, *_QUESTIONS)

    @property
    def prompt_version(self) -> str:
        """`edit/1#1a2b3c4d`, or the file's name with the hash."""
        name = Path(self.prompt_file).stem if self.prompt_file else self.prompt
        return f"{name}#{stable_id('lmm prompt', self.template)[:8]}"


def _own_question(path: str) -> str:
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"prompt_file {path!r} cannot be read ({reason_of(error)}).") from None
    for slot in ("{reference}", "{target}"):
        if slot not in text:
            raise ConfigError(f"prompt_file {path!r} has no {slot}; the picture or its caption is put there.")
    return text if "{answer}" in text else f"{text.rstrip()} {{answer}}"


GENERATORS: "Registry[MakeGenerator[Any]]" = Registry(
    "generator", ["cirray.generators.store", "cirray.generators.lmm"],
    {"mtg": MtgConfig, "caption_template": SavedConfig, "template": SavedConfig, "lmm": LmmConfig},
)  # fmt: skip
"""Name -> constructor."""


class GeneratorChoice(Component):
    """What writes the texts."""

    registry = GENERATORS
    kind: str = "mtg"
    """Name of the generator: `mtg`, a trained network (VDG's too), `caption_template`, SPN's templates filled with
    captions, `lmm`, a large model that is asked about both pictures, or `template`, one text with the images' ids."""

    @property
    def reads(self) -> str:
        """What it needs of a pair's images: `features`, `pictures` or `captions`."""
        return str(getattr(self.settings, "reads", "features"))

    @property
    def texts(self) -> int:
        """Texts of a pair and direction."""
        return int(getattr(self.settings, "texts", 1))


TRAINABLE: "Registry[TrainableKind]" = Registry(
    "kind of trainable generator", ["cirray.generators.store"], {"mtg": GeneratorConfig}, TrainableConfig
)
"""Name -> how it is made and saved. A plug-in registers what it saves with `GENERATORS` under the same name."""


class TrainedGenerator(Component):
    """The network that learns to write the texts."""

    registry = TRAINABLE
    kind: str = "mtg"
    """Name of the kind: `mtg`, VDG's too."""
