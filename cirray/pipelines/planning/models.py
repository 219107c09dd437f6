"""The networks of a run, built without weights. Everything here is called under `weightless`."""

from pathlib import Path
from typing import Any

import torch

from cirray.core.artifacts import is_complete
from cirray.core.config import validate
from cirray.core.errors import CirrayError, ConfigError
from cirray.core.storage import exists, is_local, local_path
from cirray.generators.config import GeneratorConfig
from cirray.generators.mtg import ModificationTextModel
from cirray.models.base import Retriever
from cirray.models.composed import QFormerRetriever, changed_config
from cirray.models.config import DualEncoderConfig, QFormerConfig, RetrieverConfig
from cirray.models.dual import DualEncoderRetriever
from cirray.models.forked import ForkedRetriever
from cirray.models.outlines import Words, outline_dual, outline_language, qformer_sizes
from cirray.models.retriever_files import build_described
from cirray.models.text import build_tokenizer, load_tokenizer
from cirray.models.text_processors import process
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.inputs import RecipesBeside, description_of
from cirray.pipelines.planning.steps import Tokens
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.training.config import FinetuneRun, PretrainRun, TrainRun
from cirray.pipelines.training.inputs import read_inputs

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": torch.bfloat16}
"""Types of a frozen language model; published ones are stored in 16 bits, which `auto` keeps."""
_STAGE_1 = "Salesforce/blip2-itm-vit-g"


def retriever_of(run: TrainRun, plan: PlanConfig, tokens: Tokens, beside: RecipesBeside) -> tuple[Retriever, str]:
    """The retriever that a run trains, and the source of its sizes.

    Raises ConfigError when the sizes of a named source cannot be known.
    """
    settings = run.encoder.settings
    if run.init:
        model, origin = _from_init(run, plan, tokens, beside)
        return _with_changes(model, run), origin
    if isinstance(settings, DualEncoderConfig):
        return outline_dual(settings, tokens.width, plan.vocabulary), settings.source or "encoder"
    settings = _qformer(run)
    if run.qformer_source:
        sized, rows, _, vectors = qformer_sizes(_stated(run.qformer_source, beside), settings.qformer)
        config = settings.model_copy(update={"qformer": sized, "embed_dim": vectors or settings.embed_dim})
        words: Any = _named_tokenizer(run.tokenizer) or Words(rows)
        return QFormerRetriever(config, words, tokens.width), run.qformer_source
    words, origin = _words(run, plan)
    return QFormerRetriever(settings, words, tokens.width), f"encoder, {origin}"


def trained_retriever(run: TrainRun, plan: PlanConfig, tokens: Tokens, beside: RecipesBeside) -> tuple[Retriever, str]:
    """As `retriever_of`, with a frozen copy as its target side if the objective has a negative bank.

    Raises ConfigError as `retriever_of`.
    """
    model, origin = retriever_of(run, plan, tokens, beside)
    shared = isinstance(model, DualEncoderRetriever) and not model.target_weights()
    part = next((term.query_part for term in run.training.active_terms.values() if term.query_part), "")
    if shared or isinstance(model, ForkedRetriever) or not part:
        return model, origin
    # Weightless tensors cannot be copied, which `fork_for_query_tuning` would do.
    return ForkedRetriever(model, retriever_of(run, plan, tokens, beside)[0], part), origin


def generator_of(
    run: GeneratorRun, plan: PlanConfig, tokens: Tokens, beside: RecipesBeside
) -> tuple[ModificationTextModel, str]:
    """The generator that a run trains, and the source of its sizes.

    Raises ConfigError when the sizes of a named source cannot be known, or for a generator of another kind than `mtg`.
    """
    source = run.language or _language_source(run.towers, beside)
    language = outline_language(source, DTYPES[run.language_dtype])
    config, reader, origin = run.generator.settings, None, f"generator, language model {source}"
    if not isinstance(config, GeneratorConfig):
        raise ConfigError(f"A plan knows generators of the kind mtg, not {run.generator.kind!r}.")
    if run.qformer_source:
        sized, rows, _, _ = qformer_sizes(run.qformer_source, config.qformer)
        config = validate(GeneratorConfig, {**config.to_dict(), "qformer": sized.to_dict()})
        reader, origin = Words(rows), f"{run.qformer_source}, language model {source}"
    if "difference" not in config.passes:
        reader = None
    stub: Any = reader
    return ModificationTextModel(config, language, tokens.width, stub), origin


def towers_behind(generator: str, beside: RecipesBeside) -> str:
    """Towers of the recipe that trains a generator; empty where there is none."""
    recipe = beside.recipe(generator)
    return str(recipe[1].get("towers", "")) if recipe else ""


def written_generator(
    place: str, dtype: str, tokens: Tokens, plan: PlanConfig, beside: RecipesBeside
) -> tuple[ModificationTextModel, str]:
    """The generator of an artifact, or of the recipe that trains it, and the source of its sizes.

    Raises ConfigError when neither is there, or the artifact's generator has no network.
    """
    found = description_of(place, "generator")
    if found is not None:
        return _described_generator(place, dtype, *found), place
    run, recipe = beside.config(place, GeneratorRun), beside.recipe(place)
    if run is None or recipe is None:
        raise ConfigError(
            f"The generator {place!r} is not there, and no recipe beside the run's file trains it. Train it first, or "
            "put its recipe beside this one."
        )
    model, _ = generator_of(run.model_copy(update={"language_dtype": dtype}), plan, tokens, beside)
    return model, f"recipe {recipe[0]}"


def _described_generator(place: str, dtype: str, description: dict[str, Any], folder: Path) -> ModificationTextModel:
    if description["kind"] != "mtg":
        raise ConfigError(f"The generator at {place!r} is a {description['kind']!r}, which needs no accelerator.")
    where = description["language_model"]
    language = outline_language(str(folder / "lm") if where == "lm" else where, DTYPES[dtype])
    config = validate(GeneratorConfig, description["generator"])
    reader = load_tokenizer(folder / "reader") if "difference" in config.passes else None
    return ModificationTextModel(config, language, int(description["patch_width"]), reader)


def _from_init(run: TrainRun, plan: PlanConfig, tokens: Tokens, beside: RecipesBeside) -> tuple[Retriever, str]:
    found = description_of(run.init, "model")
    if found is not None:
        return build_described(*found), run.init
    recipe = beside.recipe(run.init)
    if recipe is None:
        words, origin = _words(run, plan)
        return QFormerRetriever(_qformer(run), words, tokens.width), f"encoder ({run.init} is not there), {origin}"
    name, tree = recipe
    if "training" not in tree:  # `cirray convert to=checkpoint` of an SPRC or PTHA file
        stub: Any = Words(plan.vocabulary)
        published = RetrieverConfig(qformer=QFormerConfig.blip2(), embed_dim=256)
        return QFormerRetriever(published, stub, tokens.width), f"recipe {name}"
    pretrain = dict(tree["training"]).get("objective") == "pretrain"
    before = beside.config(run.init, PretrainRun if pretrain else FinetuneRun)
    if before is None and "mapping" in str(dict(tree["training"]).get("objective", "")):
        raise ConfigError(
            f"{run.init!r} is not there; the sizes of a pseudo-word retriever are read from what `cirray map` wrote. "
            f"Run its recipe {name!r} first."
        )
    if before is None or before.init == run.init:
        raise ConfigError(f"The recipe {name!r}, which writes {run.init!r}, cannot be read.")
    return retriever_of(before, plan, tokens, beside)[0], f"recipe {name}"


def _stated(source: str, beside: RecipesBeside) -> str:
    """The source of sizes; a LAVIS BLIP-2 file that is still to be converted has those of the published model."""
    recipe = None if exists(source) else beside.recipe(source)
    return _STAGE_1 if recipe is not None and recipe[1].get("format") == "blip2" else source


def _with_changes(model: Retriever, run: TrainRun) -> Retriever:
    """A checkpoint's network with the run's changes."""
    if isinstance(model, ForkedRetriever):
        return ForkedRetriever(_with_changes(model.query, run), _with_changes(model.gallery, run), model.trains)
    given = run.encoder.settings.given()
    if not isinstance(model, QFormerRetriever) or not given:
        return model
    config = changed_config(model.config, given, f"the checkpoint {run.init!r}")
    return QFormerRetriever(config, model.tokenizer, model.patch_width)


def _qformer(run: TrainRun) -> RetrieverConfig:
    """The settings of a Q-Former retriever. Raises ConfigError: for an encoder of another kind."""
    if not isinstance(run.encoder.settings, RetrieverConfig):
        raise ConfigError(
            f"A plan knows encoders of the kinds qformer and dual without their weights, not {run.encoder.kind!r}."
        )
    return run.encoder.settings


def _words(run: TrainRun, plan: PlanConfig) -> tuple[Any, str]:
    named = _named_tokenizer(run.tokenizer)
    if named is not None:
        return named, f"tokenizer {run.tokenizer}"
    try:
        # training without features opens every picture once; a plan opens none
        texts = read_inputs(run, None if run.features else ()).texts
        return build_tokenizer(process(_qformer(run).text_processor, texts)), "words of the training texts"
    except (CirrayError, OSError):
        return Words(plan.vocabulary), "plan.vocabulary words"


def _named_tokenizer(name: str) -> Any | None:
    there = bool(name) and is_local(name) and local_path(name).is_dir()
    return load_tokenizer(local_path(name)) if there else None


def _language_source(towers: str, beside: RecipesBeside) -> str:
    """Source of a towers artifact's language model."""
    if exists(towers) and is_complete(towers):
        return str(local_path(towers) / "lm")
    found = beside.recipe(towers)
    if found is None:
        raise ConfigError(
            f"The towers {towers!r} are not there, and no recipe beside the run's file makes them. Name the language "
            "model (language=FOLDER)."
        )
    return str(found[1].get("language", "asset"))
