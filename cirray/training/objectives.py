"""The configured loss: a weighted sum of terms (`cirray.training.terms.config.OBJECTIVES` names sets of them)."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from torch import nn

from cirray.core.errors import DataError
from cirray.core.ids import Ids
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.base import Retriever
from cirray.models.batch import RetrievalBatch, RetrieverOutput, Wanted
from cirray.models.forked import check_query_tuning, fork_for_query_tuning, inner_description
from cirray.training.config import TrainingConfig
from cirray.training.gather import Gather
from cirray.training.terms.base import TERMS, TermInput, TermRows, TermSetup


def prepared(retriever: Retriever, config: TrainingConfig) -> Retriever:
    """The retriever as the configured terms need it: forked if one needs a frozen target side."""
    for settings in config.active_terms.values():
        retriever = fork_for_query_tuning(retriever, settings.query_part) if settings.query_part else retriever
    return retriever


def check_objective(rows: TermRows, description: Mapping[str, Any]) -> None:
    """Refuse what preparing the configured terms would refuse, before any weights are loaded.

    Args:
        rows: the rows of the training.
        description: of the retriever that it starts from (`kind`, `retriever`: its settings).

    Raises ConfigError or DataError as `prepared` and the terms.
    """
    kind = str(inner_description(description)["kind"])
    for name, settings in rows.config.active_terms.items():
        if settings.query_part:
            check_query_tuning(description, settings.query_part)
        TERMS.get(name).check(rows, kind, settings)


def reads_candidates(config: TrainingConfig) -> bool:
    """Whether a configured term reads the candidates of the batch."""
    return any(TERMS.get(name).contrasts for name in config.active_terms)


def wanted_outputs(config: TrainingConfig) -> Wanted:
    """The optional outputs that a configuration's terms use."""
    terms = [TERMS.get(name) for name in config.active_terms]
    references = config.negatives == "batch_images" and reads_candidates(config)
    return reduce(Wanted.__or__, (term.wanted for term in terms), Wanted(references=references))


class Objective:
    """The configured loss, its terms prepared."""

    def __init__(self, setup: TermSetup) -> None:
        """Prepare the terms. Raises ConfigError: for a term that the encoder cannot serve."""
        self.config, active = setup.config, setup.config.active_terms
        self.weights = {name: settings.weight for name, settings in active.items()}
        self.wanted = wanted_outputs(setup.config)
        self._terms = {name: TERMS.get(name)(setup, settings) for name, settings in active.items()}

    def loss(self, model: nn.Module, batch: RetrievalBatch, gather: Gather) -> LossOutput:
        """The objective of this rank's rows; the mean over ranks is the global batch's loss."""
        return self.of(model(batch, self.wanted), batch, gather)

    def of(self, output: RetrieverOutput, batch: RetrievalBatch, gather: Gather) -> LossOutput:
        """As `loss`, of a batch's outputs; its patches are not read."""
        given = TermInput(output, batch, self.config, gather)
        values = {name: term(given) for name, term in self._terms.items()}
        result = weighted_sum(values, self.weights)
        figures = {name: figure for term in self._terms.values() for name, figure in term.figures.items()}
        return LossOutput(result.total, {**result.terms, **figures, "temperature": output.temperature.detach()})

    def finish(self, retriever: Retriever) -> None:
        """The terms' checks of the trained retriever before it is saved. Raises ConfigError: when a check fails."""
        for term in self._terms.values():
            term.finish(retriever)


def retrieval_loss(model: Retriever, batch: RetrievalBatch, config: TrainingConfig, gather: Gather) -> LossOutput:
    """The objective of a single batch, for terms that prepare nothing from the data (unlike a negative bank)."""
    return Objective(TermSetup((), Ids(()), _NoFeatures(), config, retriever=model)).loss(model, batch, gather)


class _NoFeatures:
    """Features of no image."""

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Always False."""
        raise DataError(f"Image {next(iter(ids), '')!r} has no features here: this loss has only its batch.")

    def __contains__(self, image_id: object) -> bool:
        return False
