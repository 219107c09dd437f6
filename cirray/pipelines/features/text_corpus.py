"""A text corpus of a user's data, for a small language model trained from scratch."""

import numpy as np

from cirray.core.errors import DataError
from cirray.data.config import DataConfig
from cirray.data.readers import read_dataset
from cirray.data.shapes.corpus import Passage
from cirray.generators.prompts import all_prompts, prompt
from cirray.training.language import Corpus

_CHANGE, _DESCRIBE = "change/1", "describe/1"


def data_corpus(config: DataConfig) -> tuple[Corpus, list[str]]:
    """Captions and training texts of a data set as passages without images, and all texts for the vocabulary.

    Unlike the embedded world's, such a model cannot describe a difference, so the generator should tune it
    (`generator.settings.tuning=full` or `lora`).

    Raises DataError when there is no text at all.
    """
    changes, captions = data_texts(config)

    def corpus(rng: np.random.Generator) -> Passage:
        use_change = bool(changes) and (not captions or bool(rng.integers(2)))
        texts, version = (changes, _CHANGE) if use_change else (captions, _DESCRIBE)
        return Passage((), prompt(version), texts[int(rng.integers(len(texts)))])

    return corpus, [*changes, *captions, *all_prompts()]


def data_texts(config: DataConfig) -> tuple[list[str], list[str]]:
    """The different training texts and captions of a data set, sorted.

    Raises DataError when there is no text at all.
    """
    dataset = read_dataset(config)
    changes = sorted({triplet.modification for triplet in dataset.split("train")})
    captions = sorted(set(dataset.captions.values()))
    if not changes and not captions:
        raise DataError(f"{dataset.name!r} has neither captions nor training texts; there is nothing to learn from.")
    return changes, captions
