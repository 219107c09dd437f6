"""A generator that starts from a BLIP-2 or InstructBLIP checkpoint: Q-Former, its text side, and the projection."""

from cirray.core.config import validate
from cirray.core.errors import ArtifactError
from cirray.generators.config import GeneratorConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.generators.trainable import Given
from cirray.models.sources.blip2 import Blip2Source, check_vocabulary, open_blip2, require_text
from cirray.models.towers.language import LanguageModel

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
