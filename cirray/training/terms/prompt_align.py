"""SPRC's alignment: the mean prototype is drawn to the mean of the learned prompts, which are held fixed.

L_align = 1/W || mean_k P_k - sg(mean_k p_k) ||^2, P the Q-Former's outputs of (reference, text), p the learned prompts
(Bai et al., 2024; docs/PAPERS.md#sprc). SPRC: L = L_q2t + w_rtc L_m2t + w_align L_align.
"""

import torch

from cirray.losses.prototype import prototype_distance
from cirray.models.batch import Wanted
from cirray.training.terms.base import TERMS, Term, TermInput
from cirray.training.terms.config import PrototypeConfig


@TERMS.register("prompt_align")
class PromptAlign(Term[PrototypeConfig]):
    """Mean squared (or cosine) distance of the two means."""

    wanted = Wanted(prompts=True)

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar."""
        assert given.output.prompts_BW is not None and given.output.prototype_BW is not None
        return given.mean(
            prototype_distance(given.output.prototype_BW, given.output.prompts_BW, self.settings.distance)
        )
