"""Generators on disk in Hugging Face layout; every stage loads them by `load_generator`.

generator/
  config.json          kind, GeneratorConfig, patch width, where the language model is, vocabulary hash
  model.safetensors    Q-Former, projection, queries, role tags
  reader/              tokenizer of the Q-Former's text side
  lm/                  language model and tokenizer (or, in config.json, a reference to a folder or hub id)
  adapter/             LoRA weights in peft's layout, when there are any
"""

import copy
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cirray.core.config import validate
from cirray.core.contents import directory_digest
from cirray.core.errors import ArtifactError, ConfigError, reason_of
from cirray.generators.base import ModificationGenerator, WriterSetup
from cirray.generators.caption_template import CaptionTemplateGenerator, load_caption_generator
from cirray.generators.config import GENERATORS, TRAINABLE, GeneratorConfig, LoraConfig, MtgConfig, SavedConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.places import CONFIG, described, find_generator
from cirray.generators.template import TemplateGenerator
from cirray.generators.trainable import Given, TrainableKind
from cirray.generators.writer import TextWriter
from cirray.models.quiet import quiet
from cirray.models.sources.blip2 import Blip2Source, check_vocabulary, open_blip2, require_text
from cirray.models.sources.file_forms import refuse_other_files
from cirray.models.sources.files import check_floats
from cirray.models.text import load_tokenizer
from cirray.models.towers.config import FrozenLanguageConfig
from cirray.models.towers.language import LanguageModel, language_dtype, load_language_model

PROJECTION = "language_projection"


def build_mtg(config: GeneratorConfig, given: Given) -> ModificationTextModel:
    """A network with random start weights, or those of a checkpoint. Raises ArtifactError: as `generator_from`."""
    if not given.source:
        return ModificationTextModel(config, given.language, given.patch_width)
    source = open_blip2(given.source)
    return generator_from(source, config, given.language, given.patch_width, given.source_projection)


def generator_from(
    source: Blip2Source, config: GeneratorConfig, language: LanguageModel, patch_width: int, projection: bool = True
) -> ModificationTextModel:
    """A network with a checkpoint's Q-Former in front of its own or another language model.

    Sizes are the checkpoint's. The difference pass needs one with a text side. Its projection is taken over, or starts
    at random.

    Raises:
        ArtifactError: tokens of another width, a language model of another width than the projection's, no text side.
    """
    if patch_width != source.patch_width:
        raise ArtifactError(
            f"The Q-Former of {source.name!r} reads vision tokens of width {source.patch_width}, the towers make "
            f"{patch_width}. Make the towers with vision={source.name}."
        )
    if projection:
        _check_projection(source, language, config)
    reader = None
    if "difference" in config.passes:
        require_text(source, "the difference pass")
        reader = source.tokenizer()
        check_vocabulary(source, reader)
    sized = validate(GeneratorConfig, {**config.to_dict(), "qformer": source.sizes(config.qformer).to_dict()})
    model = ModificationTextModel(sized, language, patch_width, reader)
    source.load(model.qformer)
    if projection:
        source.load_linear(model.projection, PROJECTION)
    return model


def _check_projection(source: Blip2Source, language: LanguageModel, config: GeneratorConfig) -> None:
    if not config.projection_bias:
        raise ArtifactError(
            f"The projection of {source.name!r} has a bias, and generator.settings.projection_bias is false. Set it to "
            "true, or source_projection=false to start a projection without bias at random."
        )
    if f"{PROJECTION}.weight" not in source.weights.places:
        raise ArtifactError(
            f"{source.name!r} has no projection to a language model; set source_projection=false to start it at random."
        )
    width = int(source.weights.read([f"{PROJECTION}.weight"])[f"{PROJECTION}.weight"].shape[0])
    if width != language.width:
        raise ArtifactError(
            f"The projection of {source.name!r} is for a language model of width {width}; {language.source!r} has "
            f"width {language.width}. Name its own language model (language={source.name}), or set "
            "source_projection=false to start the projection at random."
        )


WEIGHTS = "model.safetensors"


def save_generator(model: ModificationTextModel, folder: str | Path) -> None:
    """Write a trained network into a folder (made when absent).

    A fully tuned language model is always copied; a frozen one unless the configuration asks for a reference.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    config, language = model.config, model.language
    embedded = config.embed_language_model or config.tuning == "full"
    if embedded:
        with quiet():
            base = copy.deepcopy(model.lm).unload() if model.config.tuning == "lora" else model.lm
            base.save_pretrained(str(root / "lm"))
        language.tokenizer.save_pretrained(str(root / "lm"))
    if config.tuning == "lora":
        model.lm.save_pretrained(str(root / "adapter"))
    if "difference" in config.passes:
        model.reader.save_pretrained(str(root / "reader"))
    save_file({name: value.contiguous().cpu() for name, value in model.own_state().items()}, str(root / WEIGHTS))
    description = {
        "kind": "mtg", "generator": {**config.to_dict(), "frame": model.frame.kind},
        "patch_width": model.qformer.patch_width,
        "language_model": "lm" if embedded else language.source, "vocabulary_hash": language.vocabulary_hash,
    }  # fmt: skip
    (root / CONFIG).write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


def save_template(generator: TemplateGenerator, folder: str | Path) -> None:
    """Write a model-free generator into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    text = json.dumps({"kind": "template", "template": generator.template}, indent=2)
    (Path(folder) / CONFIG).write_text(text + "\n")


def load_generator(folder: str | Path, device: str = "cpu", seed: int = 0, **settings: Any) -> ModificationGenerator:
    """Load a generator of any kind, ready to write: its artifact, or a folder of its files.

    `settings` are of its kind, e.g. `decoding` and `language_dtype` (`MtgConfig`).

    Raises ArtifactError when the folder holds no complete generator or its language model has another vocabulary, and
    ConfigError for an unknown setting.
    """
    place = str(folder)
    kind = described(place)["kind"]
    try:
        made, own = GENERATORS.get(kind), GENERATORS.settings(kind)
    except ConfigError as error:
        raise ArtifactError(f"{place!r}: {error}") from None
    return made(validate(own, {"source": place, **settings}), WriterSetup(device, seed))


TRAINABLE.register("mtg")(TrainableKind(build_mtg, save_generator, TextWriter))


@GENERATORS.register("mtg")
def _load_mtg(settings: MtgConfig, setup: WriterSetup) -> TextWriter:
    folder = find_generator(settings.source)
    model = load_model(folder, settings, setup.device).to(setup.device)
    directions = ("forward", "reverse") if setup.directions == "both" else ("forward",)
    return TextWriter(model, settings.decoding, directory_digest(folder), setup.seed, directions)


@GENERATORS.register("template")
def _load_template(settings: SavedConfig, setup: WriterSetup) -> TemplateGenerator:
    return TemplateGenerator(described(settings.source, "template")["template"], setup.seed)


@GENERATORS.register("caption_template")
def _load_captions(settings: SavedConfig, setup: WriterSetup) -> CaptionTemplateGenerator:
    description = described(settings.source, "caption_template")
    return load_caption_generator(find_generator(settings.source), description, setup.device, setup.seed)


def load_model(
    folder: str | Path, held: FrozenLanguageConfig | None = None, device: str = "cpu"
) -> ModificationTextModel:
    """The network alone, for evaluation or further training; `held` is the type of the language model's weights, else
    fp32.

    Raises ArtifactError as `load_generator`.
    """
    root = Path(folder)
    description = described(str(root), "mtg")
    config = validate(GeneratorConfig, description["generator"])
    where = description["language_model"]
    held = held or FrozenLanguageConfig()
    source = root / "lm" if where == "lm" else where
    language = load_language_model(source, language_dtype(held.language_dtype), held.language_quantization, device)
    if language.vocabulary_hash != description["vocabulary_hash"]:
        raise ArtifactError(
            f"The language model at {where!r} has vocabulary {language.vocabulary_hash}, "
            f"the generator at {str(root)!r} was trained with {description['vocabulary_hash']}. "
            "Give it the language model it was trained with."
        )
    reader = load_tokenizer(root / "reader") if "difference" in config.passes else None
    model = ModificationTextModel(config, language, int(description["patch_width"]), reader)
    _load_weights(model, root)
    return model.eval()


def _load_weights(model: ModificationTextModel, root: Path) -> None:
    own, stored = model.own_state(), _stored(root / WEIGHTS, root)
    if set(stored) != set(own):
        odd = sorted(set(stored) ^ set(own))[:3]
        raise ArtifactError(f"The weights of the generator at {str(root)!r} do not fit its configuration: {odd}.")
    check_floats(str(root), stored)
    try:
        model.load_state_dict(stored, strict=False)
    except RuntimeError as error:
        raise ArtifactError(
            f"The weights of the generator at {str(root)!r} do not fit its configuration: {reason_of(error, 300)}"
        ) from None
    if model.config.tuning == "lora":
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model.lm, _read_adapter(root / "adapter", model.config.lora, root))


def _read_adapter(folder: Path, wanted: LoraConfig, root: Path) -> dict[str, Any]:
    """Adapter weights; refused if their rank or scale differs from the generator's configuration."""
    weights = _stored(folder / "adapter_model.safetensors", root)
    try:
        settings = json.loads((folder / "adapter_config.json").read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"The adapter at {str(folder)!r} cannot be read: {error}.") from None
    ranks = {value.shape[0] for name, value in weights.items() if "lora_A" in name}
    found = (settings.get("r"), settings.get("lora_alpha"))
    if found != (wanted.rank, wanted.alpha) or ranks != {wanted.rank}:
        raise ArtifactError(
            f"The adapter at {str(folder)!r} has rank {sorted(ranks)} (its settings say {found[0]}, alpha {found[1]}), "
            f"the generator's configuration rank {wanted.rank} and alpha {wanted.alpha}. Put the adapter back that was "
            "trained with this generator."
        )
    return weights


def _stored(path: Path, root: Path) -> dict[str, Any]:
    if path.is_file():
        refuse_other_files(path)
    try:
        return dict(load_file(str(path)))
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"The weights of the generator at {str(root)!r} cannot be read: {path.name} is missing or truncated "
            f"({reason_of(error)}). Copy the artifact again, or train it again."
        ) from None
