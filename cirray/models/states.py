"""Cache of reference states by image, for retrievers whose states do not depend on the text.

Search uses it: someone who refines a text about one image pays for the image once. (The released SPN code caches SPRC's
    prompts by image although they depend on the text: docs/PAPERS.md#negative-bank.)
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cirray.core.errors import ConfigError


class ReferenceStates:
    """The latest reference states of a retriever; an image that is kept is not encoded again."""

    def __init__(self, retriever: Any, limit: int) -> None:
        """Nothing is kept yet. Raises ConfigError: for a retriever whose states depend on the text."""
        if getattr(retriever, "state_depends_on_text", False):
            raise ConfigError(
                f"The reference states of a {retriever.kind!r} retriever depend on the text, so they cannot be kept by "
                "image: two texts about one image would share one. Encode each (image, text) anew."
            )
        self._retriever, self._limit, self._kept = retriever, limit, OrderedDict[str, torch.Tensor]()
        self.counts = (0, 0)
        """Images that were kept, and encoded, so far."""

    @torch.no_grad()
    def get(self, keys: Sequence[str], patches_of: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
        """States of images, first dimension B; keys are equal only for equal images.

        `patches_of`: positions in `keys` -> patch tokens; called once, for images that are not kept.
        """
        found = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = {key: place for place, key in reversed(list(enumerate(keys))) if key not in found}
        if fresh:
            states = self._retriever.encode_reference(patches_of(list(fresh.values())))
            found |= dict(zip(fresh, states, strict=True))
        self.counts = (self.counts[0] + len(keys) - len(fresh), self.counts[1] + len(fresh))
        self._remember(found)
        return torch.stack([found[key] for key in keys])

    def _remember(self, found: dict[str, torch.Tensor]) -> None:
        for key, state in found.items():
            self._kept[key] = state
            self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
