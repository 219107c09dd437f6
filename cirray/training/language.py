"""Pretraining of the small language model on text alone: describing a difference, with slots of bags of words.

Throw-away heads on inner layers predict, at each slot of the second image, whether it differs from the first image's
slot, and the words of both. With them the skill appears after 250 steps, without after 1,000.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cirray.core.seeding import numpy_generator
from cirray.data.shapes.corpus import Passage
from cirray.losses.output import LossOutput, weighted_sum
from cirray.models.batch import Movable
from cirray.models.towers.language import LanguageModel, bag_ids, embed_bags
from cirray.training.task import SourceTask
from cirray.training.tower_config import LanguageTrainingConfig

IGNORE = -100


Corpus = Callable[[np.random.Generator], Passage]


@dataclass(frozen=True)
class LanguageBatch(Movable):
    """Slots of bags `ids_BTW` (-1 fills), answer labels `labels_BT` (-100 elsewhere), and the marked rows.

    `pairs_R` are rows with two images, `marks_RSK` their per-slot facts (changed, alone in shape, alone in shape and
    colour); `slots` is the number of slots of one image.
    """

    ids_BTW: torch.Tensor
    labels_BT: torch.Tensor
    pairs_R: torch.Tensor
    marks_RSK: torch.Tensor
    slots: int


class DifferenceLearner(nn.Module):
    """A causal model with the throw-away heads of its pretraining."""

    def __init__(self, language: LanguageModel, config: LanguageTrainingConfig) -> None:
        """Add heads to a model."""
        super().__init__()
        width, words = language.width, len(language.tokenizer)
        self.language, self.lm, self.config = language, language.model, config
        self.changed, self.alone = nn.Linear(width, 1), nn.Linear(width, 2)
        self.before, self.after = nn.Linear(width, words), nn.Linear(width, words)

    def forward(self, batch: LanguageBatch) -> LossOutput:
        """Answer cross-entropy plus the weighted losses of the heads."""
        output = self.lm.model(inputs_embeds=self._inputs(batch.ids_BTW), output_hidden_states=True, use_cache=False)
        logits_BTV = self.lm.lm_head(output.last_hidden_state)
        answer = F.cross_entropy(logits_BTV.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=IGNORE)
        terms = {"answer": answer}
        if len(batch.pairs_R) and batch.slots:
            terms |= self._head_losses(output.hidden_states, batch)
        weights = {
            "answer": 1.0,
            "changed": self.config.heads,
            "words": 0.3 * self.config.heads,
            "alone": self.config.heads,
        }
        return weighted_sum(terms, {name: weights[name] for name in terms})

    def _inputs(self, ids_BTW: torch.Tensor) -> torch.Tensor:
        """Bag embeddings; slots of several words get random noise, since soft tokens are never exact."""
        vectors_BTD = embed_bags(self.language, ids_BTW)
        is_bag_BT1 = ((ids_BTW >= 0).sum(-1) > 1).unsqueeze(-1)
        if not bool(is_bag_BT1.any()):  # a corpus without images has no slots and no deviation
            return vectors_BTD
        scale = self.config.noise * vectors_BTD.detach()[is_bag_BT1.expand_as(vectors_BTD)].std()
        strength_B11 = torch.rand(len(ids_BTW), 1, 1, device=ids_BTW.device)
        return vectors_BTD + is_bag_BT1 * scale * strength_B11 * torch.randn_like(vectors_BTD)

    def _head_losses(self, hidden: Sequence[torch.Tensor], batch: LanguageBatch) -> dict[str, torch.Tensor]:
        slots, middle = batch.slots, len(hidden) // 2
        second = slice(slots, 2 * slots)
        compare_RSD = hidden[middle][batch.pairs_R, second]
        count_RSD = hidden[min(middle + 1, len(hidden) - 1)][batch.pairs_R, second]
        changed_RS = batch.marks_RSK[..., 0]
        number = changed_RS.sum().clamp_min(1)
        bce = F.binary_cross_entropy_with_logits
        words = [
            bce(head(compare_RSD), self._words(batch.ids_BTW[batch.pairs_R, part]), reduction="none").sum(-1)
            for head, part in ((self.before, slice(0, slots)), (self.after, second))
        ]
        alone_RS = bce(self.alone(count_RSD), batch.marks_RSK[..., 1:], reduction="none").mean(-1)
        return {
            "changed": bce(self.changed(compare_RSD)[..., 0], changed_RS),
            "words": ((words[0] + words[1]) * changed_RS).sum() / number / batch.ids_BTW.shape[-1],
            "alone": (alone_RS * changed_RS).sum() / number,
        }

    def _words(self, ids_RSW: torch.Tensor) -> torch.Tensor:
        """Which words a bag holds, as 0/1 over the vocabulary: `[R, S, V]`."""
        hits = F.one_hot(ids_RSW.clamp_min(0), len(self.language.tokenizer)) * (ids_RSW >= 0).unsqueeze(-1)
        return hits.sum(-2).clamp_max(1).float()


class LanguageTask(SourceTask):
    """Trains a language model on an endless corpus of passages."""

    def __init__(self, language: LanguageModel, corpus: Corpus, config: LanguageTrainingConfig) -> None:
        """Prepare."""
        super().__init__(DifferenceLearner(language, config), self._passages)
        self._language, self._corpus, self._config = language, corpus, config

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write model and tokenizer; the heads are dropped."""
        self._language.save(folder)

    def _passages(self, step: int, rank: int, world: int) -> LanguageBatch:
        rng = numpy_generator(self._config.seed, "passages", step, rank)
        with_difference = rng.random() < self._config.difference_share
        passages = [self._corpus(rng) for _ in range(self._config.batch // world)]
        return encode_passages(self._language, passages, with_difference, self._config.bag_width)


def encode_passages(
    language: LanguageModel, passages: Sequence[Passage], with_difference: bool, bag_width: int
) -> LanguageBatch:
    """Passages as one batch: image slots, optional difference slots, prompt, answer; padded on the right."""
    rows, labels = [], []
    for passage in passages:
        answer = [*language.token_ids(passage.answer), language.end_id]
        bags = [bag for image in passage.images for bag in image]
        bags += passage.difference if with_difference else ()
        prompt = language.token_ids(passage.prompt)
        ids_TW = torch.full((len(bags) + len(prompt) + len(answer) - 1, bag_width), -1, dtype=torch.int64)
        ids_TW[: len(bags)] = bag_ids(language, bags, bag_width)
        ids_TW[len(bags) :, 0] = torch.tensor([*prompt, *answer[:-1]])
        rows.append(ids_TW)
        labels.append(torch.tensor([IGNORE] * (len(ids_TW) - len(answer)) + answer))
    marked = [number for number, passage in enumerate(passages) if passage.marks]
    return LanguageBatch(
        ids_BTW=nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1),
        labels_BT=nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE),
        pairs_R=torch.tensor(marked, dtype=torch.int64),
        marks_RSK=torch.tensor([passages[number].marks for number in marked], dtype=torch.float32),
        slots=len(passages[marked[0]].marks) if marked else 0,
    )
