"""Reference states kept by image: only where they do not depend on the text.

The released SPN code keeps SPRC's prompts by image although they are made from image and text, so that a row is
composed with those of another row (docs/PAPERS.md#negative-bank). What may be kept is what `encode_reference` gives,
and only of a retriever that says so. Search uses it: whoever refines a text about one image pays for the image once.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cirray.core.errors import ConfigError


class ReferenceStates:
    """States of a retriever's references, the latest so many; an image that is kept is not encoded again."""

    def __init__(self, retriever: Any, limit: int) -> None:
        """Nothing is kept yet.

        Args:
            retriever: a `Retriever`.
            limit: images kept at a time, at least 1.

        Raises:
            ConfigError: for a retriever whose states depend on the text.
        """
        if getattr(retriever, "state_depends_on_text", False):
            raise ConfigError(
                f"The reference states of a {retriever.kind!r} retriever depend on the text, so they cannot be kept by "
                "image: two texts about one image would share one. Encode each (image, text) anew."
            )
        self._retriever, self._limit, self._kept = retriever, limit, OrderedDict[str, torch.Tensor]()

    @torch.no_grad()
    def get(self, keys: Sequence[str], patches_of: Callable[[Sequence[int]], torch.Tensor]) -> torch.Tensor:
        """States of images, first dimension B.

        Args:
            keys: what tells images apart: equal keys for equal images alone.
            patches_of: patch tokens of the images at some places of `keys`; asked once, for those that are not kept.
        """
        found = {key: self._kept[key] for key in keys if key in self._kept}
        fresh = {key: place for place, key in reversed(list(enumerate(keys))) if key not in found}
        if fresh:
            states = self._retriever.encode_reference(patches_of(list(fresh.values())))
            found |= dict(zip(fresh, states, strict=True))
        self._remember(found)
        return torch.stack([found[key] for key in keys])

    def _remember(self, found: dict[str, torch.Tensor]) -> None:
        for key, state in found.items():
            self._kept[key] = state
            self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)
