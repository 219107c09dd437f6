"""SEARLE's two parts: a token for every image by gradient descent, then phi distils them.

Search (OTI): 1 - cos(E0("a photo of $", s), v) + w (1 - cos(E0(phrase with s), E0(phrase with the image's words))),
the moving average of s is kept. Distillation: contrast of phi's tokens with the found ones (NT-Xent, temperature 0.25)
and w' (1 - cos) of phrases with either. SEARLE takes an image's words from zero-shot concepts and a language model's
phrases; here they are its caption and the configured phrases (docs/PAPERS.md#searle).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cirray.core.errors import ConfigError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.losses.nt_xent import nt_xent
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.batch import Movable
from cirray.models.words.prompts import SLOT
from cirray.models.words.word_map import WordMapRetriever, unit
from cirray.training.gather import Gather
from cirray.training.loop import train
from cirray.training.torch_engine import TorchEngine
from cirray.training.zeroshot.base import MapSetup, MapTask, places_among_all
from cirray.training.zeroshot.config import MAPPINGS

_SOON = 10.0
"""The moving average follows faster in its first steps, so that its start is forgotten."""


@dataclass(frozen=True)
class SearchBatch(Movable):
    """The images' vectors `image_BD`, and the phrase of the step with either side's words."""

    image_BD: torch.Tensor
    phrase: int


class TokenTable(nn.Module):
    """A token (or several) for every image of a block, and their moving average."""

    def __init__(self, retriever: WordMapRetriever, count: int, average: float, seed: int) -> None:
        """Random tokens at the words' own spread."""
        super().__init__()
        object.__setattr__(self, "_reader", retriever)  # frozen: neither trained nor saved with the table
        words_VW = retriever.word_table
        generator = torch.Generator().manual_seed(seed)
        shape = (count, retriever.config.tokens, words_VW.shape[1])
        start = torch.randn(shape, generator=generator) * words_VW.detach().cpu().std()
        self.tokens_MNW, self._decay = nn.Parameter(start.to(words_VW.device)), average
        self.average_MNW: torch.Tensor
        self.steps: torch.Tensor
        self.register_buffer("average_MNW", self.tokens_MNW.detach().clone())
        self.register_buffer("steps", torch.zeros((), device=words_VW.device))

    def forward(self, phrase: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors `[M, D]`, norm 1, of the images' own prompt and of a phrase with the tokens."""
        reader: WordMapRetriever = self._reader  # type: ignore[assignment]
        return reader.pseudo_sentences(self.tokens_MNW), read_phrase(reader, phrase, self.tokens_MNW)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the tokens."""
        self.steps += 1
        decay = min(self._decay, float((1 + self.steps) / (_SOON + self.steps)))
        self.average_MNW.lerp_(self.tokens_MNW, 1 - decay)


class SearchTask:
    """Finds the tokens of one block of images, all of them at every step."""

    def __init__(self, setup: MapSetup, rows: Sequence[int]) -> None:
        """Read the images' vectors and their captions inside every phrase, once."""
        retriever, config = setup.retriever.eval(), setup.settings
        retriever.requires_grad_(False)
        patches_BPD = torch.from_numpy(setup.features.get([setup.images[row] for row in rows]))
        self._image_BD = retriever.encode_gallery(patches_BPD)[:, 0].cpu()
        self._config, self._phrases, self._seed = config, config.phrases, setup.config.seed
        self._table = TokenTable(
            retriever, len(rows), config.search.average, derive_seed(self._seed, "token search", rows[0])
        )
        captions = [setup.captions[row] for row in rows]
        self._meant_PMD = _meant(retriever, config.phrases, captions) if config.search.phrase_weight else None

    def model(self) -> nn.Module:
        """The table of tokens."""
        return self._table

    def batches(self, start_step: int, rank: int, world: int) -> Iterator[SearchBatch]:
        """The whole block with the step's phrase, without end."""
        for step in count(start_step):
            rng = numpy_generator(self._seed, "search phrase", step)
            yield SearchBatch(self._image_BD, int(rng.integers(len(self._phrases))))

    def loss(self, model: nn.Module, batch: SearchBatch, gather: Gather) -> LossOutput:
        """Distance of pseudo-sentences from images, and of phrases from what they should mean."""
        self._table.follow()
        pseudo_MD, said_MD = model(self._phrases[batch.phrase])
        # A sum: every image's token is a search of its own, whatever the size of the block.
        terms = {"image": _apart(pseudo_MD, batch.image_BD).sum()}
        if self._meant_PMD is not None:
            terms["phrase"] = _apart(said_MD, self._meant_PMD[batch.phrase].to(said_MD.device)).sum()
        weights = {"image": 1.0, "phrase": self._config.search.phrase_weight}
        return weighted_sum(terms, {name: weights[name] for name in terms})

    def save(self, model: nn.Module, folder: Path) -> None:
        """Nothing: the caller takes `found`."""

    @property
    def found_MNW(self) -> torch.Tensor:
        """The tokens."""
        return self._table.average_MNW.cpu()


def search_tokens(setup: MapSetup, rows: Sequence[int]) -> torch.Tensor:
    """Tokens `[M, N, W]` of a block of images, by the one training loop."""
    task = SearchTask(setup, rows)
    train(task, setup.settings.search, TorchEngine)
    return task.found_MNW


@dataclass(frozen=True)
class DistilBatch(Movable):
    """The tower's tokens of images, the tokens found for them, and the phrase of the step."""

    patches_BPD: torch.Tensor
    tokens_BNW: torch.Tensor
    phrase: int


@dataclass(frozen=True)
class Distilled(Movable):
    """phi's tokens `[B, N, W]`, and the phrase's vectors with them `[B, D]`, norm 1."""

    tokens_BNW: torch.Tensor
    said_BD: torch.Tensor


class DistilLearner(nn.Module):
    """A retriever whose forward pass gives phi's tokens and a phrase with them."""

    def __init__(self, retriever: WordMapRetriever, phrases: Sequence[str]) -> None:
        """Wrap a retriever, trained in place."""
        super().__init__()
        self.retriever, self._phrases = retriever, tuple(phrases)

    def forward(self, batch: DistilBatch) -> Distilled:
        """Both of every image."""
        tokens_BNW = self.retriever.encode_reference(batch.patches_BPD)
        return Distilled(tokens_BNW, read_phrase(self.retriever, self._phrases[batch.phrase], tokens_BNW))


@MAPPINGS.register("distil")
class DistilTask(MapTask[DistilBatch, Distilled]):
    """phi learns the tokens that were found."""

    def __init__(self, setup: MapSetup) -> None:
        """Take the tokens. Raises ConfigError: without tokens, or with other ones than the images'."""
        if setup.tokens_MNW is None or len(setup.tokens_MNW) != len(setup.images):
            raise ConfigError("objective distil needs a token for every image; search them first (cirray map does).")
        super().__init__(setup, DistilLearner(setup.retriever, setup.settings.phrases))
        self._tokens_MNW = torch.from_numpy(setup.tokens_MNW)

    def told(self, rows: np.ndarray, step: int, rank: int, world: int) -> DistilBatch:
        """The found tokens and the step's phrase."""
        seed, phrases = self.setup.config.seed, self.setup.settings.phrases
        phrase = int(numpy_generator(seed, "distil phrase", step).integers(len(phrases)))
        return DistilBatch(torch.empty(len(rows), 0, 0), self._tokens_MNW[torch.as_tensor(rows)], phrase)

    def seen(self, batch: DistilBatch, rows: np.ndarray) -> DistilBatch:
        """With the tower's tokens."""
        return replace(batch, patches_BPD=self.patches(rows))

    def loss_of(self, vectors: Distilled, batch: DistilBatch, gather: Gather) -> LossOutput:
        """Contrast with the found tokens, and agreement of phrases."""
        config, retriever = self.setup.settings, self.setup.retriever
        made_BM, found_BM = unit(vectors.tokens_BNW.flatten(1)), unit(batch.tokens_BNW.flatten(1))
        positive_B = places_among_all(len(made_BM), gather.rank, made_BM.device)
        contrast_B = nt_xent(
            made_BM, found_BM, gather.rows(made_BM), gather.rows(found_BM), positive_B, config.temperature
        )
        with torch.no_grad():
            meant_BD = read_phrase(retriever, config.phrases[batch.phrase], batch.tokens_BNW)
        terms = {"contrast": contrast_B.mean(), "phrase": _apart(vectors.said_BD, meant_BD).mean()}
        return weighted_sum(terms, {"contrast": 1.0, "phrase": config.phrase_weight})


def read_phrase(retriever: WordMapRetriever, phrase: str, tokens_BNW: torch.Tensor) -> torch.Tensor:
    """Vectors `[B, D]`, norm 1, of one phrase with every image's token in its slot."""
    row = retriever.writer.template(retriever.processed([phrase])[0])
    return unit(retriever.read(retriever.writer.rows([row] * len(tokens_BNW)).to(retriever.device), tokens_BNW))


@torch.no_grad()
def _meant(retriever: WordMapRetriever, phrases: Sequence[str], captions: Sequence[str]) -> torch.Tensor:
    """Vectors `[P, M, D]`, norm 1, of every phrase with every caption in its slot."""
    rows = [retriever.read_captions([phrase.replace(SLOT, text) for text in captions]) for phrase in phrases]
    return torch.stack([unit(vectors_MD).cpu() for vectors_MD in rows])


def _apart(left_BD: torch.Tensor, right_BD: torch.Tensor) -> torch.Tensor:
    """1 - cosine of vectors of norm 1, per row."""
    return 1 - (left_BD * right_BD).sum(dim=1)
