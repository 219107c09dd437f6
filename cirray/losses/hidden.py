"""Candidates that a row must not see, as integers: a mask exists only for the block of scores at hand."""

from dataclasses import dataclass

import torch

WHOLE = slice(None)


@dataclass(frozen=True)
class Hidden:
    """What is hidden from B rows among N candidates; a row always sees its own positive.

    Keys are integers that are equal exactly for equal images. -1 only fills: a candidate with it is hidden from all.
    """

    key_N: torch.Tensor
    positive_B: torch.Tensor
    """Index of each row's own candidate."""
    copies: bool = True
    """Hide other candidates with the own one's key (the target a second time)."""
    further_BK: torch.Tensor | None = None
    """Keys of each row's further right answers; -1 fills."""
    leads_NK: torch.Tensor | None = None
    """Further keys that each candidate leads to, where candidates are queries; -1 fills."""
    absent_N: torch.Tensor | None = None
    """True for candidates that no row sees."""

    def mask(self, rows: slice = WHOLE, columns: slice = WHOLE) -> torch.Tensor:
        """A block of the mask, `[b, n]`: True where row b must not see candidate n."""
        own_b1, key_n = self.positive_B[rows, None], self.key_N[columns]
        target_b1, absent_n = self.key_N[own_b1], key_n == -1
        if self.absent_N is not None:
            absent_n = absent_n | self.absent_N[columns]
        mask_bn = absent_n.expand(len(own_b1), -1)
        if self.copies:
            mask_bn = mask_bn | (key_n == target_b1)
        for key_b in () if self.further_BK is None else self.further_BK[rows].unbind(dim=1):
            mask_bn = mask_bn | (key_n == key_b[:, None])
        for lead_n in () if self.leads_NK is None else self.leads_NK[columns].unbind(dim=1):
            mask_bn = mask_bn | (lead_n == target_b1)
        return mask_bn & ~self.own(rows, columns)

    def own(self, rows: slice = WHOLE, columns: slice = WHOLE) -> torch.Tensor:
        """A block of `[b, n]`: True where candidate n is row b's own."""
        place_n = torch.arange(len(self.key_N), device=self.key_N.device)[columns]
        return place_n == self.positive_B[rows, None]
