"""Losses of the mapping stage: pseudo-sentences against images, and softly against captions.

L_1 = L_map + lambda L_sta, L_sta = (1 - h) KL(p_i || q_i) + h (-log q_ii), p_i = softmax_j(c_i.c_j / tau_t),
q_i = softmax_j(u_i.c_j / tau_s). After arXiv 2504.17990; L_map is Pic2Word's, the soft alignment is our definition
(docs/PAPERS.md#soft-text-alignment). u_i: embedding of the pseudo-sentence "a photo of $" with image i's token in the
slot; v_i: the image's embedding; c_j: the embedding of caption j; all of norm 1.
"""

from dataclasses import dataclass

import torch

from cirray.losses.contrastive import contrastive
from cirray.losses.hidden import Hidden
from cirray.losses.sums import row_sums, tile_of


@dataclass(frozen=True)
class Teacher:
    """What the soft alignment needs of p, `[B, N]`, which is made for some rows at a time: without gradient."""

    mean_BD: torch.Tensor
    """sum_j p_ij c_j."""
    inform_B: torch.Tensor
    """sum_j p_ij log p_ij."""


def dot(rows_BD: torch.Tensor, candidates_ND: torch.Tensor) -> torch.Tensor:
    """Products of rows and candidates, `[B, N]`."""
    return rows_BD @ candidates_ND.T


def cross_entropies(
    rows_BD: torch.Tensor, candidates_ND: torch.Tensor, positive_B: torch.Tensor, temperature: torch.Tensor | float
) -> torch.Tensor:
    """-log softmax_j(r_i . c_j / tau) at the positive, losses `[B]` in nats; in tiles where there are many."""
    places_N = torch.arange(len(candidates_ND), device=positive_B.device)
    hidden = Hidden(places_N, positive_B, copies=False)
    return contrastive(row_sums(dot, rows_BD, candidates_ND, temperature, hidden, totals=False))


def symmetric_contrast(
    left_BD: torch.Tensor, right_BD: torch.Tensor, left_ND: torch.Tensor, right_ND: torch.Tensor,
    positive_B: torch.Tensor, temperature: torch.Tensor | float,
) -> torch.Tensor:  # fmt: skip
    """L_map: half the cross-entropy of u_i against all v, half that of v_i against all u (Pic2Word's form).

    Left are the pseudo-sentences u, right the images v, of this rank (B) and of all ranks (N); `positive_B` is the
    place of the rank's rows among all; the temperature is CLIP's own, fixed.

    Returns: Losses `[B]`, in nats.
    """
    forward_B = cross_entropies(left_BD, right_ND, positive_B, temperature)
    return 0.5 * (forward_B + cross_entropies(right_BD, left_ND, positive_B, temperature))


@torch.no_grad()
def caption_teacher(
    own_BD: torch.Tensor, captions_ND: torch.Tensor, temperature: float, images_BD: torch.Tensor | None = None,
    mix: float = 0.0,
) -> Teacher:  # fmt: skip
    """The teacher of the rank's rows, made of `caption_shares` for some rows at a time; arguments as there."""
    high, _ = tile_of(len(own_BD), len(captions_ND))
    means, informs = [], []
    for begin in range(0, len(own_BD), high):
        rows = slice(begin, begin + high)
        seen_bD = None if images_BD is None else images_BD[rows]
        shares_bN = caption_shares(own_BD[rows], captions_ND, temperature, seen_bD, mix)
        means.append(shares_bN @ captions_ND)
        informs.append(torch.xlogy(shares_bN, shares_bN).sum(dim=1))
    return Teacher(torch.cat(means), torch.cat(informs))


def caption_shares(
    own_BD: torch.Tensor, captions_ND: torch.Tensor, temperature: float, images_BD: torch.Tensor | None = None,
    mix: float = 0.0, image_temperature: float = 0.01,
) -> torch.Tensor:  # fmt: skip
    """p_ij: how much caption i speaks for caption j; rows sum to 1, the own caption included.

    p_i = softmax_j(c_i . c_j / tau_t), so equal captions share their mass; with `mix` eta,
    (1 - eta) p_i + eta softmax_j(v_i . c_j / 0.01). The two cosines have different spreads, hence two temperatures.

    Args:
        own_BD: c of some rows.
        captions_ND: c of all rows.
        temperature: tau_t.
        images_BD: v of the rows; needed where `mix` is above 0.
        mix: eta.
        image_temperature: of the second part.
    """
    teacher_BN = (dot(own_BD, captions_ND) / temperature).softmax(dim=1)
    if mix and images_BD is not None:
        seen_BN = (dot(images_BD, captions_ND) / image_temperature).softmax(dim=1)
        teacher_BN = (1 - mix) * teacher_BN + mix * seen_BN
    return teacher_BN


def soft_text(
    pseudo_BD: torch.Tensor, captions_ND: torch.Tensor, positive_B: torch.Tensor, teacher: Teacher,
    temperature: float, hardness: float,
) -> torch.Tensor:  # fmt: skip
    """L_sta: (1 - h) KL(p_i || q_i) + h (-log q_ii) with q_i = softmax_j(u_i . c_j / tau_s), per row `[B]`, in nats.

    As p_i sums to 1, sum_j p_ij log q_ij is log q_ii with sum_j p_ij c_j in place of c_i.

    Args:
        pseudo_BD: u of the rank's rows.
        captions_ND: c of all rows.
        positive_B: place of the rank's rows among all.
        teacher: p.
        temperature: tau_s.
        hardness: h; 1 is the cross-entropy with the own caption, 0 the soft alignment alone.
    """
    hard_B = cross_entropies(pseudo_BD, captions_ND, positive_B, temperature)
    apart_B = (pseudo_BD.float() * (captions_ND[positive_B] - teacher.mean_BD)).sum(dim=1) / temperature
    soft_B = teacher.inform_B + hard_B + apart_B
    return (1 - hardness) * soft_B + hardness * hard_B
