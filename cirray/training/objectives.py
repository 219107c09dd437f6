"""Objectives: which loss terms with which weights. A method's loss is a line here, or `training.terms` in a config.

PTHA: L = L_q2t + lambda_m L_m2t + lambda_p L_p2p; pretraining and plain fine-tuning are L_q2t alone. SPRC
has the same first two terms; in place of L_p2p it draws the mean prototype to the mean of its learned prompts.
VDG: L_tcc, and L_tdm where `training.terms` adds it. Papers: docs/PAPERS.md.
"""

from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
from torch import nn

from cirray.core.errors import ConfigError, DataError
from cirray.core.registry import Registry
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch, RetrieverOutput, Wanted
from cirray.training.config import TrainingConfig
from cirray.training.gather import Gather
from cirray.training.terms.base import TERMS, TermInput, TermSetup

Weights = dict[str, float]
OBJECTIVES: Registry[Callable[[TrainingConfig], Weights]] = Registry("objective")
"""Name -> weights of its terms, by the configuration."""

OBJECTIVES.register("pretrain")(lambda config: {"infonce": 1.0})
OBJECTIVES.register("finetune")(lambda config: {"infonce": 1.0})
OBJECTIVES.register("sprc")(lambda c: {"infonce": 1.0, "rtc": c.lambda_m, "prompt_align": c.lambda_p})
OBJECTIVES.register("spn")(lambda config: {"bank_infonce": 1.0})
OBJECTIVES.register("ptha")(lambda c: {"infonce": 1.0, "rtc": c.lambda_m, "two_hop": c.lambda_p})
OBJECTIVES.register("vdg")(lambda config: {"tcc": 1.0})
OBJECTIVES.register("composing")(lambda c: {"composing": 1.0, "retention": c.composing.lambda_ret})


def term_weights(config: TrainingConfig) -> Weights:
    """The objective's terms with `config.terms` over them, those of weight 0 left out.

    Raises:
        ConfigError: for an unknown objective or term, or when no term is left.
    """
    weights = {**OBJECTIVES.get(config.objective)(config), **config.terms}
    for name in weights:
        TERMS.get(name)
    kept = {name: weight for name, weight in weights.items() if weight}
    if not kept:
        raise ConfigError(f"training.terms {config.terms} leaves no loss term. Give one a weight above 0.")
    return kept


def prepared(retriever: Retriever, config: TrainingConfig) -> Retriever:
    """The retriever as the configured terms need it: forked where one of them wants a frozen target side."""
    for name in term_weights(config):
        retriever = TERMS.get(name).prepared(retriever, config)
    return retriever


def wanted_outputs(config: TrainingConfig) -> Wanted:
    """The optional outputs that a configuration's terms use."""
    return reduce(Wanted.__or__, (TERMS.get(name).wanted(config) for name in term_weights(config)), Wanted())


class Objective:
    """The configured loss, its terms prepared."""

    def __init__(self, setup: TermSetup) -> None:
        """Prepare the terms.

        Raises:
            ConfigError: for an unknown objective or term, or one that the encoder cannot serve.
        """
        self.config, self.weights = setup.config, term_weights(setup.config)
        self.wanted = wanted_outputs(setup.config)
        self._terms = {name: TERMS.get(name)(setup) for name in self.weights}

    def loss(self, model: nn.Module, batch: RetrievalBatch, gather: Gather) -> LossOutput:
        """The objective of this rank's rows; the mean over ranks is the global batch's loss.

        Args:
            model: a `Retriever` or an engine's wrapper of it.
            batch: this rank's rows, equally many on every rank.
            gather: access to the other ranks' rows.
        """
        output: RetrieverOutput = model(batch, self.wanted)
        given = TermInput(output, batch, self.config, gather)
        values = {name: term(given) for name, term in self._terms.items()}
        result = weighted_sum(values, self.weights)
        figures = {name: figure for term in self._terms.values() for name, figure in term.figures.items()}
        return LossOutput(result.total, {**result.terms, **figures, "temperature": output.temperature.detach()})

    def finish(self, retriever: Retriever) -> None:
        """What the terms have to say of the trained retriever before it is saved.

        Raises:
            ConfigError: when it broke a term's rule.
        """
        for term in self._terms.values():
            term.finish(retriever)


def retrieval_loss(model: Retriever, batch: RetrievalBatch, config: TrainingConfig, gather: Gather) -> LossOutput:
    """The objective of one batch alone, for terms that prepare nothing from the data (a negative bank does).

    Args:
        model: the retriever itself.
        batch: this rank's rows.
        config: objective and weights.
        gather: access to the other ranks' rows.
    """
    return Objective(TermSetup(model, (), (), _NoFeatures(), config)).loss(model, batch, gather)


class _NoFeatures:
    """Features of no image."""

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Nothing is there."""
        raise DataError(f"Image {next(iter(ids), '')!r} has no features here: this loss has only its batch.")

    def __contains__(self, image_id: object) -> bool:
        return False
