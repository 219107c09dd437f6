"""Reference states kept by image: only where they do not depend on the text.

The released SPN code keeps SPRC's prompts by image although they are made from image and text, so that a row is
composed with those of another row. What may be kept is what `encode_reference` gives, and only of a retriever that
says so.
"""

from collections.abc import Sequence

import torch

from cirray.core.errors import ConfigError
from cirray.models.base import Retriever


class ReferenceStates:
    """States of a retriever's references, each image encoded once."""

    def __init__(self, retriever: Retriever) -> None:
        """Nothing is kept yet.

        Raises:
            ConfigError: for a retriever whose states depend on the text.
        """
        if retriever.state_depends_on_text:
            raise ConfigError(
                f"The reference states of a {retriever.kind!r} retriever depend on the text, so they cannot be kept by "
                "image: two texts about one image would share one. Encode each (image, text) anew."
            )
        self._retriever, self._kept = retriever, dict[str, torch.Tensor]()

    @torch.no_grad()
    def get(self, ids: Sequence[str], patches_BPD: torch.Tensor) -> torch.Tensor:
        """States of images, first dimension B; an image seen before is not encoded again.

        Args:
            ids: their ids.
            patches_BPD: their patch tokens, in the order of the ids.
        """
        fresh = {image: row for row, image in reversed(list(enumerate(ids))) if image not in self._kept}
        if fresh:
            states = self._retriever.encode_reference(patches_BPD[list(fresh.values())])
            self._kept |= dict(zip(fresh, states, strict=True))
        return torch.stack([self._kept[image] for image in ids])
