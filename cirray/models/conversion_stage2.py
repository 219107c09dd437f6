"""SPN's second stage of SPRC: one file with two text sides, as SPN4CIR saves it. Pure; both directions.

The file holds the whole first-stage retriever and, beside it, `Qformer_query.*` and `text_proj_q.*`: copies of the
Q-Former and the text projection that stage 2 trained. They read the second pass alone; the first pass and the gallery
stay the first stage's (docs/PAPERS.md#negative-bank). Names: SPN4CIR, `blip2_qformer_cir_align_prompt.py`.
"""

from collections.abc import Mapping

import torch

from cirray.models.conversion import TOWER

State = Mapping[str, torch.Tensor]
FORMAT, WRAPPER, PREFIX = "spn", "CIRPlus", "blip_model."
_COPIES = {"Qformer_query.": "Qformer.", "text_proj_q.": "text_proj."}


def is_stage_2(names: State) -> bool:
    """Whether tensors are those of a second stage."""
    return any(name.startswith("Qformer_query.") for name in names)


def split(state: State) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The first stage's tensors, and those of the query side under the same names (without a vision tower)."""
    first = {name: value for name, value in state.items() if not name.startswith(tuple(_COPIES))}
    own = ("Qformer.", "text_proj.", TOWER)
    shared = {name: value for name, value in first.items() if not name.startswith(own)}
    return first, {**shared, **_renamed(state, _COPIES)}


def joined(first: State, query: State) -> dict[str, torch.Tensor]:
    """What `split` splits, under the names of SPN4CIR's own wrapper; the temperature is the query side's."""
    copies = _renamed(query, {there: here for here, there in _COPIES.items()})
    return {PREFIX + name: value for name, value in {**first, "temp": query["temp"], **copies}.items()}


def _renamed(state: State, beginnings: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors whose names have one of the beginnings, with that beginning exchanged."""
    return {
        new + name.removeprefix(old): value
        for name, value in state.items()
        for old, new in beginnings.items()
        if name.startswith(old)
    }
