"""Losses of the mapping stage: pseudo-sentences against images, and softly against captions.

L_1 = L_map + lambda L_sta, L_sta = (1 - h) KL(p_i || q_i) + h (-log q_ii), p_i = softmax_j(c_i.c_j / tau_t),
q_i = softmax_j(u_i.c_j / tau_s). After arXiv 2504.17990; L_map is Pic2Word's, the soft alignment is our definition
(docs/PAPERS.md#soft-text-alignment). u_i: embedding of the pseudo-sentence "a photo of $" with image i's token in the
slot; v_i: the image's embedding; c_j: the embedding of caption j; all of norm 1.
"""

import torch
from torch.nn import functional


def symmetric_contrast(
    left_BD: torch.Tensor, right_BD: torch.Tensor, left_ND: torch.Tensor, right_ND: torch.Tensor,
    positive_B: torch.Tensor, temperature: torch.Tensor | float,
) -> torch.Tensor:  # fmt: skip
    """L_map: half the cross-entropy of u_i against all v, half that of v_i against all u (Pic2Word's form).

    Left are the pseudo-sentences u, right the images v, of this rank (B) and of all ranks (N); `positive_B` is the
    place of the rank's rows among all; the temperature is CLIP's own, fixed.

    Returns: Losses `[B]`, in nats.
    """
    forward_B = functional.cross_entropy(left_BD @ right_ND.T / temperature, positive_B, reduction="none")
    backward_B = functional.cross_entropy(right_BD @ left_ND.T / temperature, positive_B, reduction="none")
    return 0.5 * (forward_B + backward_B)


def caption_teacher(
    own_BD: torch.Tensor, captions_ND: torch.Tensor, temperature: float, images_BD: torch.Tensor | None = None,
    mix: float = 0.0, image_temperature: float = 0.01,
) -> torch.Tensor:  # fmt: skip
    """p_ij: how much caption i speaks for caption j; rows sum to 1, the own caption included, without gradient.

    p_i = softmax_j(c_i . c_j / tau_t), so equal captions share their mass; with `mix` eta,
    (1 - eta) p_i + eta softmax_j(v_i . c_j / 0.01). The two cosines have different spreads, hence two temperatures.

    Args:
        own_BD: c of the rank's rows.
        captions_ND: c of all rows.
        temperature: tau_t.
        images_BD: v of the rank's rows; needed where `mix` is above 0.
        mix: eta.
        image_temperature: of the second part.
    """
    with torch.no_grad():
        teacher_BN = (own_BD @ captions_ND.T / temperature).softmax(dim=1)
        if mix and images_BD is not None:
            seen_BN = (images_BD @ captions_ND.T / image_temperature).softmax(dim=1)
            teacher_BN = (1 - mix) * teacher_BN + mix * seen_BN
    return teacher_BN


def soft_text(
    pseudo_BD: torch.Tensor, captions_ND: torch.Tensor, positive_B: torch.Tensor, teacher_BN: torch.Tensor,
    temperature: float, hardness: float,
) -> torch.Tensor:  # fmt: skip
    """L_sta: (1 - h) KL(p_i || q_i) + h (-log q_ii) with q_i = softmax_j(u_i . c_j / tau_s), per row `[B]`, in nats.

    Args:
        pseudo_BD: u of the rank's rows.
        captions_ND: c of all rows.
        positive_B: place of the rank's rows among all.
        teacher_BN: p.
        temperature: tau_s.
        hardness: h; 1 is the cross-entropy with the own caption, 0 the soft alignment alone.
    """
    log_q_BN = (pseudo_BD @ captions_ND.T / temperature).log_softmax(dim=1)
    hard_B = -log_q_BN.gather(1, positive_B[:, None])[:, 0]
    soft_B = functional.kl_div(log_q_BN, teacher_BN, reduction="none").sum(dim=1)
    return (1 - hardness) * soft_B + hardness * hard_B
