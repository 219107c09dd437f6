"""Batched decoding from embedded prefixes with a key-value cache: greedy, sampling and beam search.

Prefixes of one call have one length, so there is no padding. An ended row leaves the batch with its cache rows. Limits
count new tokens (docs/PAPERS.md#decoding).
"""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from cirray.core.errors import GenerationError
from cirray.generators.config import DecodingConfig


@dataclass(frozen=True)
class Decoded:
    """One decoded row: token ids without the end token, mean log-probability per token, whether it ended with that
    token.

    With beams and a repetition penalty, the mean is of the penalised scores that the beams were ranked by.
    """

    ids: list[int]
    logprob: float
    finished: bool


@torch.inference_mode()
def decode(
    lm: Any, prefix_BLE: torch.Tensor, config: DecodingConfig, end_id: int, uniforms_BT: torch.Tensor | None = None
) -> list[Decoded]:
    """Continue every prefix.

    Args:
        lm: causal or encoder-decoder language model of transformers, which reads a prefix as `inputs_embeds`.
        prefix_BLE: embedded prefixes of one length.
        config: greedy (beams 1), sampling or beam search.
        end_id: token that ends a row.
        uniforms_BT: with `sample`, numbers in [0, 1) that choose each row's tokens (`row_uniforms`): a row's text does
            not depend on the rows beside it.

    Returns: One result per row, in order; the same on every run for the same arguments.

    Raises GenerationError when `sample` is set without numbers for every row and step.
    """
    if len(prefix_BLE) == 0:
        return []
    if config.beams > 1:
        return _beam_search(lm, prefix_BLE, config, end_id)
    if config.sample and (uniforms_BT is None or uniforms_BT.shape != (len(prefix_BLE), config.max_new_tokens)):
        raise GenerationError(
            f"Sampling needs one random number per row and token ({len(prefix_BLE)} x {config.max_new_tokens})."
        )
    return _single(lm, prefix_BLE, config, end_id, uniforms_BT)


def row_uniforms(seeds: Sequence[int], length: int) -> torch.Tensor:
    """Numbers in [0, 1), one row per seed: `[len(seeds), length]`."""
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, length)


def _single(
    lm: Any, prefix_BLE: torch.Tensor, config: DecodingConfig, end_id: int, uniforms_BT: torch.Tensor | None
) -> list[Decoded]:
    """Greedy or sampled continuation, one hypothesis per row; ended rows are dropped from batch and cache."""
    rows, cache = len(prefix_BLE), _new_cache(lm)
    logits_BV = _advance(lm, cache, inputs_embeds=prefix_BLE)
    written_BT = torch.empty(rows, 0, dtype=torch.int64, device=prefix_BLE.device)
    logprob_B = torch.zeros(rows, device=prefix_BLE.device)
    active, results = list(range(rows)), [Decoded([], 0.0, False)] * rows
    for step in range(config.max_new_tokens):
        scores_BV = _processed(logits_BV, written_BT, config, end_id, step)
        next_B = _choose(scores_BV, config, uniforms_BT[active, step] if uniforms_BT is not None else None)
        logprob_B = logprob_B + F.log_softmax(scores_BV, -1).gather(1, next_B[:, None])[:, 0]
        written_BT = torch.cat([written_BT, next_B[:, None]], dim=1)
        ended = (next_B == end_id).tolist()
        last = step + 1 == config.max_new_tokens
        for place, row in enumerate(active):
            if ended[place] or last:
                results[row] = _result(written_BT[place], float(logprob_B[place]), ended[place])
        keep = [place for place, done in enumerate(ended) if not done]
        if last or not keep:
            break
        if len(keep) < len(active):
            index = torch.tensor(keep, device=prefix_BLE.device)
            cache.batch_select_indices(index)
            next_B, written_BT, logprob_B = next_B[index], written_BT[index], logprob_B[index]
            active = [active[place] for place in keep]
        logits_BV = _advance(lm, cache, input_ids=next_B[:, None])
    return results


def _beam_search(lm: Any, prefix_BLE: torch.Tensor, config: DecodingConfig, end_id: int) -> list[Decoded]:
    """Beam search as transformers' `generate` does it (early_stopping=False).

    2K candidates per row and step; those of the best K that end are kept by their length-normalised score, K live on.
    At the last step every candidate ends.
    """
    rows, beams, device = len(prefix_BLE), config.beams, prefix_BLE.device
    search = _Beams(rows, config, end_id)
    cache = _new_cache(lm)
    logits_BV = _advance(lm, cache, inputs_embeds=prefix_BLE)
    logits_BV = logits_BV.repeat_interleave(beams, dim=0)
    cache.batch_repeat_interleave(beams)
    score_RK = torch.full((rows, beams), -math.inf, device=device)
    score_RK[:, 0] = 0.0
    written_RKT = torch.empty(rows, beams, 0, dtype=torch.int64, device=device)
    for step in range(config.max_new_tokens):
        # with beams, transformers penalises log-probabilities, not logits; other beams would win
        scores_BV = _processed(F.log_softmax(logits_BV, -1), written_RKT.flatten(0, 1), config, end_id, step)
        total_RKV = score_RK[..., None] + scores_BV.unflatten(0, (-1, beams))
        vocabulary = total_RKV.shape[-1]
        best_RC, index_RC = total_RKV.flatten(1).topk(min(2 * beams, beams * vocabulary), dim=1)
        last = step + 1 == config.max_new_tokens
        beam_RC, token_RC = index_RC // vocabulary, index_RC % vocabulary
        score_RK, beam_RK, token_RK = search.select(best_RC, beam_RC, token_RC, written_RKT, last)
        written_RKT = torch.cat(
            [written_RKT.gather(1, beam_RK[..., None].expand(-1, -1, step)), token_RK[..., None]], dim=2
        )
        if last or search.done(score_RK, step + 1):
            break
        offset_R1 = torch.arange(len(score_RK), device=device)[:, None] * beams
        keep_R = search.live(score_RK, step + 1)
        score_RK, written_RKT, beam_RK, token_RK, offset_R1 = (
            item[keep_R] for item in (score_RK, written_RKT, beam_RK, token_RK, offset_R1)
        )
        cache.batch_select_indices((offset_R1 + beam_RK).flatten())
        logits_BV = _advance(lm, cache, input_ids=token_RK.flatten()[:, None])
    return search.results()


class _Beams:
    """Ended hypotheses of every row, and which rows still search."""

    def __init__(self, rows: int, config: DecodingConfig, end_id: int) -> None:
        self.config, self.end_id = config, end_id
        self.active = list(range(rows))
        self.ended: list[list[tuple[float, float, list[int]]]] = [[] for _ in range(rows)]

    def select(
        self,
        best_RC: torch.Tensor,
        beam_RC: torch.Tensor,
        token_RC: torch.Tensor,
        written_RKT: torch.Tensor,
        last: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """File candidates that end among the best K (on the last step, all of them); the best others live on."""
        beams, ends_RC = self.config.beams, token_RC == self.end_id
        filed_RK = (ends_RC[:, :beams] | last) & best_RC[:, :beams].isfinite()
        for place, rank in torch.nonzero(filed_RK).tolist():
            ids = [*written_RKT[place, beam_RC[place, rank]].tolist(), int(token_RC[place, rank])]
            self._file(self.active[place], float(best_RC[place, rank]), ids)
        order_RC = best_RC.masked_fill(ends_RC, -math.inf).topk(beams, dim=1)
        return order_RC.values, beam_RC.gather(1, order_RC.indices), token_RC.gather(1, order_RC.indices)

    def live(self, score_RK: torch.Tensor, length: int) -> torch.Tensor:
        """Indices of the rows that can still improve; the others are dropped."""
        open_rows = [place for place in range(len(self.active)) if not self._settled(place, score_RK, length)]
        self.active = [self.active[place] for place in open_rows]
        return torch.tensor(open_rows, device=score_RK.device)

    def done(self, score_RK: torch.Tensor, length: int) -> bool:
        """Whether no row can improve."""
        return all(self._settled(place, score_RK, length) for place in range(len(self.active)))

    def results(self) -> list[Decoded]:
        """Best hypothesis of each row."""
        found = []
        for ended in self.ended:
            _, score, ids = ended[0]
            finished = ids[-1] == self.end_id
            found.append(Decoded(ids[:-1] if finished else ids, score / len(ids), finished))
        return found

    def _file(self, row: int, score: float, ids: list[int]) -> None:
        ranked = [*self.ended[row], (self._normalised(score, len(ids)), score, ids)]
        self.ended[row] = sorted(ranked, key=lambda item: -item[0])[: self.config.beams]

    def _settled(self, place: int, score_RK: torch.Tensor, length: int) -> bool:
        """K hypotheses ended, and the best live one could not beat the worst of them at its present length."""
        ended = self.ended[self.active[place]]
        if len(ended) < self.config.beams:
            return not bool(score_RK[place, 0].isfinite())
        return self._normalised(float(score_RK[place, 0]), length) <= ended[-1][0]

    def _normalised(self, score: float, length: int) -> float:
        return score / length**self.config.length_penalty


def _new_cache(lm: Any) -> Any:
    """Keys and values of the decoder, and of the encoder where the model has one."""
    if lm.config.is_encoder_decoder:
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    return DynamicCache()


def _advance(lm: Any, cache: Any, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits of the next token, `[B, V]`; the cache grows in place."""
    if lm.config.is_encoder_decoder:
        return _advance_decoder(lm, cache, **inputs)
    return lm(**inputs, **_held(lm, cache), logits_to_keep=1).logits[:, -1].float()


def _advance_decoder(
    lm: Any, cache: Any, inputs_embeds: torch.Tensor | None = None, input_ids: torch.Tensor | None = None
) -> torch.Tensor:
    """An encoder-decoder reads the prefix once; afterwards its keys and values come from the cache.

    The decoder still needs encoder outputs of the right shape; their values are not read.
    """
    if inputs_embeds is not None:
        start = torch.full((len(inputs_embeds), 1), lm.config.decoder_start_token_id, device=inputs_embeds.device)
        given: dict[str, Any] = {"inputs_embeds": inputs_embeds, "decoder_input_ids": start}
    else:
        assert input_ids is not None
        keys_BHLD = cache.cross_attention_cache.layers[0].keys
        width = lm.get_input_embeddings().weight.shape[1]
        unread_BLE = keys_BHLD.new_zeros(1).expand(len(input_ids), keys_BHLD.shape[2], width)
        given = {"encoder_outputs": BaseModelOutput(last_hidden_state=unread_BLE), "decoder_input_ids": input_ids}
    return lm(**given, **_held(lm, cache)).logits[:, -1].float()


def _held(lm: Any, cache: Any) -> dict[str, Any]:
    """The cache by the name that the model's forward pass gives it: `past_key_values` before transformers 5.24."""
    plain = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
    name = "cache" if "cache" in inspect.signature(plain.forward).parameters else "past_key_values"
    return {name: cache, "use_cache": True}


def _processed(
    logits_BV: torch.Tensor, written_BT: torch.Tensor, config: DecodingConfig, end_id: int, step: int
) -> torch.Tensor:
    """Logits, or log-probabilities, after repetition penalty (Keskar et al., CTRL) and the lower length limit."""
    if config.repetition_penalty > 1 and written_BT.shape[1]:
        seen_BT = logits_BV.gather(1, written_BT)
        penalised_BT = torch.where(
            seen_BT < 0, seen_BT * config.repetition_penalty, seen_BT / config.repetition_penalty
        )
        logits_BV = logits_BV.scatter(1, written_BT, penalised_BT)
    if step < config.min_new_tokens:
        logits_BV = logits_BV.clone()
        logits_BV[:, end_id] = -math.inf
    return logits_BV


def _choose(scores_BV: torch.Tensor, config: DecodingConfig, uniform_B: torch.Tensor | None) -> torch.Tensor:
    if not config.sample or uniform_B is None:
        return scores_BV.argmax(dim=-1)
    sorted_BV, order_BV = F.softmax(scores_BV / config.temperature, dim=-1).sort(dim=-1, descending=True)
    if config.top_k:
        sorted_BV = sorted_BV[:, : config.top_k]
        sorted_BV = sorted_BV / sorted_BV.sum(dim=-1, keepdim=True)
    below_BV = sorted_BV.cumsum(dim=-1)
    kept_B = (below_BV - sorted_BV < config.top_p).sum(dim=-1, keepdim=True)
    threshold_B1 = uniform_B.to(below_BV)[:, None] * below_BV.gather(1, kept_B - 1)
    rank_B1 = torch.searchsorted(below_BV, threshold_B1, right=True)
    return order_BV.gather(1, torch.minimum(rank_B1, kept_B - 1))[:, 0]


def _result(ids_T: torch.Tensor, total: float, ended: bool) -> Decoded:
    ids = ids_T.tolist()
    return Decoded(ids[:-1] if ended else ids, total / max(len(ids), 1), ended)
