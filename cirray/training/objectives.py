"""Objectives: which loss terms with which weights. A method's loss is a line here, or `training.terms` in a config.

PTHA: L = L_q2t + lambda_m L_m2t + lambda_p L_p2p (section 5); pretraining and plain fine-tuning are L_q2t alone. SPRC
has the same first two terms; in place of L_p2p it draws the mean prototype to the mean of its learned prompts.
"""

from collections.abc import Callable
from functools import reduce

from torch import nn

from cirray.core.errors import ConfigError
from cirray.core.registry import Registry
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.batch import RetrievalBatch, RetrieverOutput, Wanted
from cirray.training import terms  # noqa: F401  (files the terms)
from cirray.training.config import TrainingConfig
from cirray.training.gather import Gather
from cirray.training.terms.base import TERMS, TermInput, TermSetup

Weights = dict[str, float]
OBJECTIVES: Registry[Callable[[TrainingConfig], Weights]] = Registry("objective")
"""Name -> weights of its terms, by the configuration."""

OBJECTIVES.register("pretrain")(lambda config: {"infonce": 1.0})
OBJECTIVES.register("finetune")(lambda config: {"infonce": 1.0})
OBJECTIVES.register("sprc")(lambda c: {"infonce": 1.0, "rtc": c.lambda_m, "prompt_align": c.lambda_p})
OBJECTIVES.register("ptha")(lambda c: {"infonce": 1.0, "rtc": c.lambda_m, "two_hop": c.lambda_p})
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
        return LossOutput(result.total, {**result.terms, "temperature": output.temperature.detach()})
