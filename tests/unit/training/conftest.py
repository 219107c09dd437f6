import numpy as np
import pytest
from modes import retriever_mode, training_mode

from cirray.models.composed import build_retriever
from cirray.models.config import QFormerConfig
from cirray.models.text import build_tokenizer
from cirray.training.retrieval import RetrievalTask
from cirray.types import Triplet

SMALL = QFormerConfig(width=16, layers=2, heads=2, queries=3, intermediate=32, initializer_range=0.2)
WORDS = ["red", "blue", "green", "large", "small", "round"]


class ArrayFeatures:
    """Random patch tokens by id: the feature store's stand-in."""

    def __init__(self, ids, seed=0):
        self.rows = {image: row for row, image in enumerate(ids)}
        self.tokens = np.random.default_rng(seed).normal(size=(len(ids), 4, 6)).astype(np.float32)

    def get(self, ids):
        return self.tokens[[self.rows[image] for image in ids]]

    def __contains__(self, image):
        return image in self.rows


def make_triplets(families=8, edits=3, reverse=True):
    rows = []
    for family in range(families):
        for edit in range(1, edits + 1):
            words = [WORDS[(family + edit) % 6], WORDS[(2 * family + edit) % 6]]
            back = f"undo {words[1]}" if reverse else None
            reference, target = f"f{family}-0", f"f{family}-{edit}"
            rows.append(Triplet(f"{family}-{edit}", reference, target, " ".join(words), back, group_id=f"f{family}"))
    return rows


@pytest.fixture(scope="session")
def triplets():
    return make_triplets()


@pytest.fixture(scope="session")
def features(triplets):
    return ArrayFeatures(sorted({image for row in triplets for image in (row.reference_id, row.target_id)}))


@pytest.fixture
def make_task(triplets, features):
    def build(rows=None, mode="improved", dropout=0.0, seed=0, **fields):
        texts = [text for row in triplets for text in (row.modification, row.reverse_modification)]
        settings = retriever_mode(
            mode, qformer=SMALL.model_copy(update={"dropout": dropout}), embed_dim=8, text_length=8
        )
        retriever = build_retriever(settings, build_tokenizer(texts), 6, seed)
        config = training_mode(mode, **{"steps": 4, "batch": 4, "log_every": 1, **fields})
        return RetrievalTask(retriever, triplets if rows is None else rows, features, config), config

    return build
