"""The objectives: synthetic pretraining, plain fine-tuning, SPRC and PTHA, over the global batch.

L = L_q2t + lambda_m L_m2t + lambda_p L_p2p (PTHA, section 5); pretraining and plain fine-tuning are L_q2t alone. SPRC
has the same first two terms; in place of L_p2p it draws the mean prototype to the mean of its learned prompts.
"""

from dataclasses import dataclass

import torch
from torch import nn

from cirray.core.errors import DataError
from cirray.losses.contrastive import contrastive, contrastive_chunked
from cirray.losses.duplicates import other_copies
from cirray.losses.mean import weighted_mean
from cirray.losses.output import LossOutput, weighted_sum
from cirray.losses.prototype import prototype_distance
from cirray.models.batch import RetrievalBatch, RetrieverOutput, Wanted
from cirray.models.scoring import score
from cirray.training.config import TrainingConfig
from cirray.training.gather import Gather


@dataclass(frozen=True)
class Candidates:
    """What the local rows are contrasted with: tokens of all ranks, their image keys, and the rows' positives."""

    tokens_NQD: torch.Tensor
    positive_B: torch.Tensor
    hidden_BN: torch.Tensor | None


def wanted_outputs(config: TrainingConfig) -> Wanted:
    """The optional outputs that a configuration's loss uses."""
    ptha, sprc = config.objective == "ptha", config.objective == "sprc"
    return Wanted(
        references=config.negatives == "batch_images",
        text_only=(ptha or sprc) and config.lambda_m > 0,
        reverse=ptha and config.lambda_p > 0,
        prompts=sprc and config.lambda_p > 0,
    )


def retrieval_loss(model: nn.Module, batch: RetrievalBatch, config: TrainingConfig, gather: Gather) -> LossOutput:
    """The configured objective of this rank's rows; the mean over ranks is the global batch's loss.

    Args:
        model: a `QFormerRetriever`, a `DualEncoderRetriever` or an engine's wrapper of it.
        batch: this rank's rows, equally many on every rank.
        config: objective and weights.
        gather: access to the other ranks' candidates.

    Raises:
        DataError: in PTHA's paper mode (`missing_reverse: error`), for a row without a reverse text.
    """
    output: RetrieverOutput = model(batch, wanted_outputs(config))
    candidates = gather_candidates(output, batch, config, gather)
    terms = {"q2t": _contrast(output.query_BD, candidates, output, batch, config, gather, config.label_smoothing)}
    weights = {"q2t": 1.0}
    if output.text_query_BD is not None:
        terms["m2t"] = _contrast(output.text_query_BD, candidates, output, batch, config, gather, 0.0)
        weights["m2t"] = config.lambda_m
    if config.objective == "ptha" and config.lambda_p > 0:
        terms["p2p"] = _prototype_term(output, batch, config, gather)
        weights["p2p"] = config.lambda_p
    if output.prompts_BQW is not None and output.prototype_BQW is not None:
        distance_B = prototype_distance(output.prototype_BQW, output.prompts_BQW, config.prototype_loss)
        mean_total = gather.total(batch.weight_B.sum()) / gather.world
        terms["align"] = weighted_mean(distance_B, batch.weight_B, mean_total)
        weights["align"] = config.lambda_p
    result = weighted_sum(terms, weights)
    return LossOutput(result.total, {**result.terms, "temperature": output.temperature.detach()})


def gather_candidates(
    output: RetrieverOutput, batch: RetrievalBatch, config: TrainingConfig, gather: Gather
) -> Candidates:
    """Targets of all ranks first, then (improved) the references of all ranks; a row's positive is its own target."""
    tokens_NQD, key_N = gather.rows(output.target_BQD), gather.rows(batch.target_key_B)
    rows = output.target_BQD.shape[0]
    positive_B = torch.arange(rows, device=key_N.device) + gather.rank * rows
    if output.reference_BQD is not None:
        tokens_NQD = torch.cat([tokens_NQD, gather.rows(output.reference_BQD)])
        key_N = torch.cat([key_N, gather.rows(batch.reference_key_B)])
    hidden_BN = other_copies(key_N, positive_B) if config.mask_duplicates else None
    return Candidates(tokens_NQD, positive_B, hidden_BN)


def _contrast(
    query_BD: torch.Tensor,
    candidates: Candidates,
    output: RetrieverOutput,
    batch: RetrievalBatch,
    config: TrainingConfig,
    gather: Gather,
    smoothing: float,
) -> torch.Tensor:
    hidden, positive, tau = candidates.hidden_BN, candidates.positive_B, output.temperature
    if config.chunk is None:
        scores_BN = score(query_BD, candidates.tokens_NQD)
        loss_B = contrastive(scores_BN, positive, tau, hidden, smoothing)
    else:
        loss_B = contrastive_chunked(
            score, query_BD, candidates.tokens_NQD, positive, tau, hidden, smoothing, config.chunk
        )
    return weighted_mean(loss_B, batch.weight_B, gather.total(batch.weight_B.sum()) / gather.world)


def _prototype_term(
    output: RetrieverOutput, batch: RetrievalBatch, config: TrainingConfig, gather: Gather
) -> torch.Tensor:
    mask_B = batch.reverse_mask_B if batch.reverse_mask_B is not None else torch.zeros_like(batch.weight_B)
    if config.missing_reverse == "error" and not bool((mask_B > 0).all()):
        row = int(torch.argmin(mask_B))
        raise DataError(
            f"Row {row} of a batch has no reverse text, which objective ptha needs in paper mode. "
            "Generate reverse texts first, or set missing_reverse to skip."
        )
    weight_B = mask_B.to(batch.weight_B.dtype) * batch.weight_B
    mean_total = gather.total(weight_B.sum()) / gather.world
    if output.reverse_prototype_BQW is None or output.prototype_BQW is None:
        return output.query_BD.new_zeros(())
    distance_B = prototype_distance(output.prototype_BQW, output.reverse_prototype_BQW, config.prototype_loss)
    return weighted_mean(distance_B, weight_B, mean_total)
