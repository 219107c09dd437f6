"""A generator without a model, for tests of everything around generation."""

from collections.abc import Sequence
from dataclasses import dataclass

from cirray.features.store import FeatureLookup
from cirray.types import Generation, Pair, stable_id


@dataclass(frozen=True)
class TemplateGenerator:
    """Fills a template with the pair's ids.

    Attributes:
        template: text with `{reference}` and `{target}`; the reverse text swaps them.
        seed: part of the digest, as a sampling generator's would be.
    """

    template: str = "make {reference} look like {target}"
    seed: int = 0

    @property
    def digest(self) -> str:
        """16 hex digits over the template and the seed."""
        return stable_id("template-generator", self.template, self.seed)

    @property
    def prompt_version(self) -> str:
        """There is no instruction."""
        return "template/1"

    def generate(self, pairs: Sequence[Pair], features: FeatureLookup) -> list[Generation]:
        """One text and one reverse text per pair; a pair whose image has no features fails."""
        return [self._one(pair, features) for pair in pairs]

    def _one(self, pair: Pair, features: FeatureLookup) -> Generation:
        for image in (pair.reference_id, pair.target_id):
            if image not in features:
                return Generation(pair.pair_id, None, error=f"image {image!r} has no features")
        return Generation(
            pair.pair_id,
            self.template.format(reference=pair.reference_id, target=pair.target_id),
            self.template.format(reference=pair.target_id, target=pair.reference_id),
        )
