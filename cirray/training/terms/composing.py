"""The composing term L_cmp: a query against the batch's targets, its own reference and its mined images.

L_cmp = -1/N sum_i log( e^(z_i.v_ti) / (sum_j e^(z_i.v_tj) + e^(z_i.v_ri) + sum_h e^(z_i.v_h)) ), products over tau, j
over the batch's targets, h over mined images; L_2 = L_cmp + lambda_ret L_ret. After arXiv 2504.17990; the form is ours
(docs/PAPERS.md#composing). The image side is frozen, so vectors of all images are computed once, into a file that is
mapped into memory, and a step reads no image.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cirray.core.environ import cache_folder
from cirray.core.errors import ConfigError
from cirray.losses.composing import composing
from cirray.mining.hard_negatives import UNUSED, draw_hard, hard_lists
from cirray.models.batch import Wanted
from cirray.training.terms.base import TERMS, Term, TermInput, TermSetup
from cirray.training.terms.config import ComposingConfig

_BLOCK = 256


@TERMS.register("composing")
class Composing(Term[ComposingConfig]):
    """InfoNCE over targets, with the own reference and H_i as further candidates of each row."""

    def __init__(self, setup: TermSetup, settings: ComposingConfig) -> None:
        """Encode all images once. Each query's hard ones are those that its row brings, else those that the start
        weights rank high.
        """
        super().__init__(setup, settings)
        self._image_ID, self._lists_MK = torch.empty(0), np.empty((0, 0), dtype=np.int64)
        if settings.hard:
            self._image_ID = image_vectors(setup)
            reference_M, target_M = (
                setup.image_ids.places([getattr(row, role) for row in setup.triplets])
                for role in ("reference_id", "target_id")
            )
            lists = [
                hard_lists(
                    query_BD.numpy(), self._image_ID.numpy(), reference_M[rows], target_M[rows], settings.ranks,
                    settings.max_cosine,
                )
                for rows, query_BD in query_vectors(setup)
            ]  # fmt: skip
            self._lists_MK = _own_first(np.concatenate(lists), _brought(setup))

    wanted = Wanted(references=True)

    def __call__(self, given: TermInput) -> torch.Tensor:
        """Scalar, in nats. Raises ConfigError: for hard negatives with a retriever that trains its image side."""
        output, batch, settings = given.output, given.batch, self.settings
        hidden = given.hidden(given.gather.rows(batch.target_key_B))
        if hidden.copies and settings.reference:
            # The own reference is once among the candidates, also where it is another row's target.
            hidden = replace(hidden, further_BK=batch.reference_key_B[:, None])
        sums = given.sums(output.query_BD, given.gather.rows(output.target_BQD), hidden)
        return given.mean(composing(sums, *self._own_negatives(given)))

    def _own_negatives(self, given: TermInput) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Logits of the rows' own negatives, and which of them do not count."""
        output, batch, settings = given.output, given.batch, self.settings
        scores, dropped = [], []
        if settings.reference:
            assert output.reference_BQD is not None
            scores.append(own_scores(output.query_BD, output.reference_BQD[:, None]))
            dropped.append((batch.reference_key_B == batch.target_key_B)[:, None])
        if settings.hard:
            if output.target_BQD.requires_grad:
                raise ConfigError(
                    "Hard negatives are mined once from frozen image vectors, but this retriever trains its image "
                    "side. Set training.terms.composing.hard=0, or use a retriever with a frozen one (word_map)."
                )
            assert batch.row_B is not None and batch.epoch is not None
            hard_BH = torch.from_numpy(
                draw_hard(self._lists_MK, batch.row_B.cpu().numpy(), settings.hard, given.config.seed, int(batch.epoch))
            )
            vectors_BHD = self._image_ID[hard_BH.clamp_min(0)].to(output.query_BD.device)
            scores.append(own_scores(output.query_BD, vectors_BHD[:, :, None]))
            dropped.append((hard_BH == UNUSED).to(output.query_BD.device))
        if not scores:
            return None, None
        return torch.cat(scores, dim=1) / output.temperature, torch.cat(dropped, dim=1)


def _brought(setup: TermSetup) -> dict[int, np.ndarray]:
    """Places of the hard negatives that rows bring, by the number of the row."""
    named = (
        (number, [name for name in row.negative_ids if name not in (row.reference_id, row.target_id)])
        for number, row in enumerate(setup.triplets)
    )
    return {number: setup.image_ids.places(names) for number, names in named if names}


def _own_first(mined_MK: np.ndarray, own: Mapping[int, np.ndarray]) -> np.ndarray:
    """Lists in which the hard negatives that a row brings stand in place of mined ones; -1 fills."""
    width = max([mined_MK.shape[1], *map(len, own.values())])
    lists_MK = np.pad(mined_MK, ((0, 0), (0, width - mined_MK.shape[1])), constant_values=UNUSED)
    for row, given in own.items():
        lists_MK[row] = UNUSED
        lists_MK[row, : len(given)] = given
    return lists_MK


def own_scores(query_BD: torch.Tensor, images_BKQD: torch.Tensor) -> torch.Tensor:
    """Similarity of every query to its own images: `[B, K]`, maximum over an image's tokens."""
    return torch.einsum("bd,bkqd->bkq", query_BD, images_BKQD).amax(dim=2)


@torch.no_grad()
def image_vectors(setup: TermSetup) -> torch.Tensor:
    """First gallery vector of every image by the start weights, `[I, D]`: a file without a name, mapped into memory."""
    setup.retriever.eval()
    images, found = len(setup.image_ids), np.empty((0, 0), np.float32)
    for begin in range(0, images, _BLOCK):
        patches_BPD = _patches(setup, setup.image_ids[begin : begin + _BLOCK])
        block_BD = setup.retriever.encode_gallery(patches_BPD)[:, 0].float().cpu().numpy()
        if not begin:
            cache_folder().mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=cache_folder()) as file:
                found = np.memmap(file, np.float32, "w+", shape=(images, block_BD.shape[1]))
        found[begin : begin + len(block_BD)] = block_BD
    return torch.from_numpy(found)


@torch.no_grad()
def query_vectors(setup: TermSetup) -> Iterator[tuple[slice, torch.Tensor]]:
    """Query of every triplet by the start weights: rows, and their `[B, D]` on the CPU."""
    retriever = setup.retriever.eval()
    for begin in range(0, len(setup.triplets), _BLOCK):
        rows = setup.triplets[begin : begin + _BLOCK]
        state = retriever.encode_reference(_patches(setup, [row.reference_id for row in rows]))
        text = retriever.tokenize([row.modification for row in rows])
        yield slice(begin, begin + len(rows)), retriever.compose(state, text).float().cpu()


def _patches(setup: TermSetup, ids: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(setup.features.get(list(ids))).to(setup.retriever.device)
