"""Start weights of a training run: made, or only checked, from configs and manifests alone. No ray."""

from collections.abc import Mapping
from typing import Any

import torch

from cirray.core.artifacts import localize
from cirray.core.errors import ConfigError, damage_told
from cirray.core.trees import leaves
from cirray.models.base import RETRIEVERS, Retriever, torch_seed
from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig, RetrieverConfig
from cirray.models.description import CONFIG
from cirray.models.forked import inner_description
from cirray.models.retriever_files import check_saved, load_retriever, read_description
from cirray.models.sources.blip2 import Blip2Source, check_start, check_temperature, open_blip2, retriever_from
from cirray.models.text import load_tokenizer
from cirray.pipelines.training.config import SOURCE, TrainRun
from cirray.pipelines.training.inputs import MODEL, TrainInputs


def start_retriever(run: TrainRun, inputs: TrainInputs, patch_width: int) -> Retriever:
    """Start weights: the checkpoint's, the source's, or random ones that depend only on the seed.

    Raises ArtifactError when the source is no BLIP-2 or InstructBLIP checkpoint with a text side, and ConfigError when
    the checkpoint reads other features.
    """
    retriever, seed, settings = None, run.training.seed, run.encoder.settings
    words = load_tokenizer(run.tokenizer) if run.tokenizer else None
    if run.init:
        retriever = load_retriever(localize(run.init, "checkpoint") / MODEL)
        if settings.given():
            with torch_seed(seed):
                retriever = retriever.changed(settings.given())
    elif run.qformer_source and isinstance(settings, RetrieverConfig):
        retriever = retriever_from(open_blip2(run.qformer_source), settings, words, seed)
    elif words is not None and isinstance(settings, RetrieverConfig):
        retriever = build_retriever(settings, words, patch_width, seed)
    else:
        retriever = RETRIEVERS.get(run.encoder.kind).build(settings, inputs.texts, patch_width, seed)
    _check_width(run, retriever.patch_width, patch_width)
    if run.temperature == SOURCE:
        check_temperature(open_blip2(run.qformer_source))  # already started from it above
    elif isinstance(run.temperature, float):
        with torch.no_grad():
            retriever.raw_temperature.fill_(run.temperature)
    return retriever


def check_start_weights(run: TrainRun, inputs: TrainInputs, patch_width: int) -> Mapping[str, Any]:
    """Refuse start weights that `start_retriever` would refuse, by their descriptions; no weights are read.

    A new network is built only where its kind cannot tell otherwise (`RetrieverKind.check`).

    Returns: The description: `kind`, `patch_width`, `retriever` (its settings) and the kind's own.

    Raises ArtifactError or ConfigError as `start_retriever`.
    """
    settings, kind = run.encoder.settings, RETRIEVERS.get(run.encoder.kind)
    words = load_tokenizer(run.tokenizer) if run.tokenizer else None
    new = {"kind": run.encoder.kind, "patch_width": patch_width, "retriever": settings.to_dict()}
    if run.init:
        found = _saved(run)
    elif run.qformer_source and isinstance(settings, RetrieverConfig):
        source = open_blip2(run.qformer_source)
        check_start(source, settings, words)
        found = {**new, "patch_width": source.patch_width}
    elif kind.check is None:
        built = start_retriever(run, inputs, patch_width)
        found = {"kind": built.kind, "patch_width": built.patch_width, **built.description()}
    else:
        kind.check(settings, patch_width)
        found = new
    with damage_told(run.init, "Make or fetch the model again."):
        _check_width(run, int(inner_description(found)["patch_width"]), patch_width)
    if run.temperature == SOURCE:
        check_temperature(open_blip2(run.qformer_source))
    return found


def _saved(run: TrainRun) -> dict[str, Any]:
    """The description of the checkpoint that is named, whose weights file is there."""
    folder = localize(run.init, "checkpoint") / MODEL
    check_saved(folder)
    return read_description(folder)


def _check_width(run: TrainRun, reads: int, patch_width: int) -> None:
    if reads != patch_width:
        raise ConfigError(
            f"The checkpoint {(run.init or run.qformer_source)!r} reads patch tokens of width {reads}, the features "
            f"have {patch_width}. Embed the images with the checkpoint's own tower."
        )


def check_model_fields(run: TrainRun) -> None:
    """Refuse fields of the network that would have no effect, or that start weights fix.

    Raises ConfigError naming the first such field.
    """
    encoder, kind = run.encoder.settings, run.encoder.kind
    given = leaves(encoder.given())
    if run.qformer_source and not isinstance(encoder, RetrieverConfig):
        raise ConfigError(
            f"qformer_source gives weights to an encoder of kind qformer, but encoder.kind is {kind!r}; empty "
            "qformer_source, or leave encoder out."
        )
    if run.tokenizer and (run.init or not isinstance(encoder, RetrieverConfig)):
        brings = "init" if run.init else f"encoder.kind {kind!r}"
        raise ConfigError(f"tokenizer={run.tokenizer!r} has no effect beside {brings}, which brings its own.")
    if run.temperature is not None and "temperature" in given and (run.init or run.qformer_source):
        raise ConfigError(
            f"temperature={run.temperature!r} and encoder.settings.temperature={given['temperature']!r} both name the "
            "start; leave one of them out."
        )
    if run.init:
        _check_changes(run)
    elif run.qformer_source and isinstance(encoder, RetrieverConfig):
        check_sizes(encoder.qformer, open_blip2(run.qformer_source), given)


def check_sizes(
    qformer: QFormerConfig, source: Blip2Source, given: Mapping[str, Any], section: str = "encoder.settings"
) -> None:
    """Refuse given sizes (dotted path below `section` -> value) that differ from a BLIP-2 source's.

    Raises ConfigError naming the first such field.
    """
    own: dict[str, Any] = leaves({"qformer": source.sizes(qformer).to_dict()})
    if source.projected:
        own["embed_dim"] = source.projected
    for name, value in given.items():
        if own.get(name, value) != value:
            raise ConfigError(
                f"{section}.{name} is {value!r}, but the checkpoint {source.name!r} has {own[name]!r} and keeps it. "
                "Leave the field out, or start without that checkpoint."
            )


def _check_changes(run: TrainRun) -> None:
    """Refuse settings that a checkpoint's weights fix, and fields of another kind of network."""
    given = run.encoder.settings.given()
    if not given and "kind" not in run.encoder.model_fields_set:
        return
    folder = localize(run.init, "checkpoint") / MODEL
    description = read_description(folder)
    with damage_told(folder / CONFIG, "Make or fetch the model again."):
        inner = inner_description(description)
        kind = RETRIEVERS.get(str(inner["kind"]))
    if run.encoder.kind not in (description["kind"], inner["kind"]):
        raise ConfigError(
            f"encoder.kind is {run.encoder.kind!r}, but the checkpoint {run.init!r} is a {inner['kind']!r}. Name that "
            f"kind, encoder.kind={inner['kind']}, or start without that checkpoint."
        )
    if given:
        kind.check_changes(inner, given, f"the checkpoint {run.init!r}")
