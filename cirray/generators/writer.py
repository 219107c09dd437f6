"""A generator that writes: features of pairs in, decoded texts out, both directions in one batch."""

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

import torch

from cirray.core.contents import canonical
from cirray.core.seeding import derive_seed
from cirray.features.store import FeatureLookup
from cirray.generators.config import DecodingConfig
from cirray.generators.decoding import Decoded, decode, row_uniforms
from cirray.generators.mtg import ModificationTextModel
from cirray.types import Generation, Pair, stable_id


class TextWriter:
    """A trained network with its decoding settings.

    q_r and q_t depend on one image each and are kept for the most recent images, so an image that occurs in many pairs
    is read once; q_c is read once per unordered pair unless role tags make it depend on the order.
    """

    def __init__(
        self,
        model: ModificationTextModel,
        decoding: DecodingConfig | None = None,
        weights_digest: str = "",
        seed: int = 0,
        directions: Sequence[str] = ("forward", "reverse"),
        cached_images: int = 20_000,
    ) -> None:
        """Take a trained network, which is put into eval mode; soft tokens of `cached_images` images are kept."""
        self.model, self.decoding, self.seed = model.eval(), decoding or DecodingConfig(), seed
        self._weights_digest, self._both, self._limit = weights_digest, "reverse" in directions, cached_images
        self._soft: OrderedDict[str, torch.Tensor] = OrderedDict()

    @cached_property
    def digest(self) -> str:
        """16 hex digits over weights, decoding settings and, when sampling, the seed."""
        seed = self.seed if self.decoding.sample else 0
        return stable_id(self._weights_digest, canonical(self.decoding.identity()), seed)

    @property
    def prompt_version(self) -> str:
        """Version of the instruction."""
        return self.model.prompt_version

    @torch.inference_mode()
    def generate(self, pairs: Sequence[Pair], features: FeatureLookup) -> list[Generation]:
        """Texts of pairs, forward and reverse: same length, same order; failures are values."""
        problems = {number: problem for number, pair in enumerate(pairs) if (problem := _problem(pair, features))}
        usable = [number for number in range(len(pairs)) if number not in problems]
        results = [Generation(pair.pair_id, None, error=problems.get(number)) for number, pair in enumerate(pairs)]
        step = max(self.decoding.batch // (2 if self._both else 1), 1)
        for begin in range(0, len(usable), step):
            chosen = usable[begin : begin + step]
            for number, result in zip(chosen, self._batch([pairs[row] for row in chosen], features), strict=True):
                results[number] = result
        return results

    def _batch(self, pairs: Sequence[Pair], features: FeatureLookup) -> list[Generation]:
        ordered = [(pair.reference_id, pair.target_id) for pair in pairs]
        if self._both:
            ordered += [(target, reference) for reference, target in ordered]
        decoded = self._decode(ordered, features, [pair.pair_id for pair in pairs])
        texts = [self._text(row) for row in decoded]
        return [self._generation(pair, number, decoded, texts, len(pairs)) for number, pair in enumerate(pairs)]

    def _generation(self, pair: Pair, number: int, decoded: list[Decoded], texts: list[str], count: int) -> Generation:
        rows = [number, number + count] if self._both else [number]
        for row, direction in zip(rows, ("forward", "reverse"), strict=False):
            problem = _defect(decoded[row], texts[row], self.decoding)
            if problem:
                return Generation(pair.pair_id, None, error=f"{direction} text {problem}")
        reverse = texts[number + count] if self._both else None
        return Generation(pair.pair_id, texts[number], reverse, min(decoded[number].logprob, 0.0))

    def _decode(
        self, ordered: Sequence[tuple[str, str]], features: FeatureLookup, pair_ids: Sequence[str]
    ) -> list[Decoded]:
        soft = self._soft_tokens({image for pair in ordered for image in pair}, features)
        reference_BQE = torch.stack([soft[reference] for reference, _ in ordered])
        target_BQE = torch.stack([soft[target] for _, target in ordered])
        prefix_BLE = self.model.prefix(reference_BQE, target_BQE, self._difference(ordered, features, len(pair_ids)))
        uniforms_BT = None
        if self.decoding.sample:
            seeds = [derive_seed(self.seed, pair_id, way) for way in ("forward", "reverse") for pair_id in pair_ids]
            uniforms_BT = row_uniforms(seeds[: len(ordered)], self.decoding.max_new_tokens).to(prefix_BLE.device)
        return decode(self.model.lm, prefix_BLE, self.decoding, self.model.language.end_id, uniforms_BT)

    def _difference(
        self, ordered: Sequence[tuple[str, str]], features: FeatureLookup, pairs: int
    ) -> torch.Tensor | None:
        """q_c of every ordered pair; only the first half is computed when the order does not matter."""
        if "difference" not in self.model.config.passes:
            return None
        needed = ordered if self.model.role_tags_RD is not None else ordered[:pairs]
        reference_BPD = self._patches([reference for reference, _ in needed], features)
        target_BPD = self._patches([target for _, target in needed], features)
        difference_BQE = self.model.read_pair(reference_BPD, target_BPD)
        return difference_BQE.repeat(len(ordered) // len(needed), 1, 1)

    def _soft_tokens(self, images: set[str], features: FeatureLookup) -> dict[str, torch.Tensor]:
        missing = sorted(image for image in images if image not in self._soft)
        if missing:
            for image, soft_QE in zip(missing, self.model.read_image(self._patches(missing, features)), strict=True):
                self._soft[image] = soft_QE
        found = {}
        for image in sorted(images):
            self._soft.move_to_end(image)
            found[image] = self._soft[image]
        while len(self._soft) > self._limit:
            self._soft.popitem(last=False)
        return found

    def _patches(self, images: Sequence[str], features: FeatureLookup) -> torch.Tensor:
        device = self.model.projection.weight.device
        return torch.from_numpy(features.get(images)).to(device, self.model.projection.weight.dtype)

    def _text(self, decoded: Decoded) -> str:
        return str(self.model.language.tokenizer.decode(decoded.ids, skip_special_tokens=True)).strip()


def _problem(pair: Pair, features: FeatureLookup) -> str:
    for image in (pair.reference_id, pair.target_id):
        if image not in features:
            return f"image {image!r} has no features"
    return ""


def _defect(decoded: Decoded, text: str, config: DecodingConfig) -> str:
    if not text:
        return "is empty"
    if not decoded.finished and not config.keep_unfinished:
        return f"has no end within {config.max_new_tokens} tokens: {text[:80]!r}"
    return ""
