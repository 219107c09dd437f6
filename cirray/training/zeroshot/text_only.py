"""LinCIR's training: text alone. A caption's noised embedding becomes a token that must stand for its masked words.

Every run of content words of a caption becomes `$`, all slots get the same token phi(E0(caption) + noise), and the
masked caption must be read as the whole one: mean squared error of the two embeddings. Noise: U(0, 1) a sample times
N(0, 1) a number. LinCIR masks nouns, adjectives and determiners by a tagger; here every word counts as such that is
not on a list of function words (our choice; docs/PAPERS.md#lincir).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.core.seeding import numpy_generator
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.batch import Movable
from cirray.models.words.prompts import SLOT, PromptBatch
from cirray.models.words.word_map import WordMapRetriever
from cirray.training.gather import Gather
from cirray.training.zeroshot.base import MapSetup, MapTask, caption_vectors
from cirray.training.zeroshot.config import MAPPINGS


@dataclass(frozen=True)
class TextOnlyBatch(Movable):
    """Captions' frozen vectors `caption_BD` (not normalised), noise for them, and the masked captions."""

    caption_BD: torch.Tensor
    noise_BD: torch.Tensor
    masked: PromptBatch


@dataclass(frozen=True)
class Read(Movable):
    """Vectors `[B, D]` of the masked captions, not normalised."""

    masked_BD: torch.Tensor


class TextOnlyLearner(nn.Module):
    """A retriever whose forward pass reads masked captions with phi's token of the noised caption in every slot."""

    def __init__(self, retriever: WordMapRetriever) -> None:
        """Wrap a retriever, trained in place."""
        super().__init__()
        self.retriever = retriever

    def forward(self, batch: TextOnlyBatch) -> Read:
        """The masked captions' vectors."""
        noised_BD = self.retriever.phi.scaled(batch.caption_BD) + batch.noise_BD
        return Read(self.retriever.read(batch.masked, self.retriever.phi(noised_BD)))


@MAPPINGS.register("text_only")
class TextOnlyTask(MapTask[TextOnlyBatch, Read]):
    """No image is read."""

    def __init__(self, setup: MapSetup) -> None:
        """Mask and encode the captions once.

        Raises ConfigError when the retriever has an injection, which needs patches.
        """
        if setup.retriever.injection is not None:
            raise ConfigError(
                "objective text_only has no image whose patches an injection could read; set model.injection.layers=0."
            )
        super().__init__(setup, TextOnlyLearner(setup.retriever))
        self._captions_ND = caption_vectors(setup.retriever, setup.captions)
        keep = frozenset(setup.settings.keep_words)
        captions = setup.retriever.processed(setup.captions)
        self._masked = [setup.retriever.writer.template(mask_words(text, keep)) for text in captions]

    def told(self, rows: np.ndarray, step: int, rank: int, world: int) -> TextOnlyBatch:
        """The captions, whole and masked, and noise for them."""
        config, writer = self.setup.config, self.setup.retriever.writer
        caption_BD = self._captions_ND[torch.as_tensor(rows)]
        rng = numpy_generator(config.seed, "caption noise", step)
        noise_ND = draw_noise(rng, len(rows) * world, caption_BD.shape[1]) * self.setup.settings.noise
        noise_BD = noise_ND[rank * len(rows) : (rank + 1) * len(rows)]
        return TextOnlyBatch(caption_BD, noise_BD, writer.rows([self._masked[int(row)] for row in rows]))

    def loss_of(self, vectors: Read, batch: TextOnlyBatch, gather: Gather) -> LossOutput:
        """Mean squared error of the masked captions' vectors."""
        return weighted_sum({"masked": (vectors.masked_BD - batch.caption_BD).square().mean()}, {"masked": 1.0})


def mask_words(caption: str, keep: frozenset[str]) -> str:
    """The caption with every run of words that are not kept replaced by one slot."""
    masked: list[str] = []
    for word in caption.replace(SLOT, " ").split():
        if word.lower().strip(".,;:!?") in keep:
            masked.append(word)
        elif not masked or masked[-1] != SLOT:
            masked.append(SLOT)
    return " ".join(masked)


def draw_noise(rng: np.random.Generator, count: int, width: int) -> torch.Tensor:
    """U(0, 1) a row times N(0, 1) a number."""
    noise_BD = rng.random((count, 1)) * rng.standard_normal((count, width))
    return torch.from_numpy(noise_BD.astype(np.float32))
