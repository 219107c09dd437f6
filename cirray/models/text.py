"""Texts as token ids: a small word-level tokenizer in Hugging Face form, and what makes batches of them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cirray.core.errors import ArtifactError, DataError
from cirray.models.batch import TextBatch
from cirray.models.sources.files import unreadable
from cirray.models.sources.tokenizers import read_tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def build_tokenizer(texts: Iterable[str], minimum_count: int = 1) -> PreTrainedTokenizerFast:
    """Word-level tokenizer over the words of `texts` (BERT style: lower case, punctuation split, [CLS] text [SEP]).

    Any order of the texts gives the same vocabulary (sorted by count, then by word); rarer words than `minimum_count`
    become [UNK].

    Raises DataError when no word is left.
    """
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    words = sorted((word for word, count in counts.items() if count >= minimum_count), key=lambda w: (-counts[w], w))
    if not words:
        raise DataError("A tokenizer cannot be built: the texts hold no word. Give non-empty texts.")
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """Tokenizer saved in Hugging Face layout.

    Raises ArtifactError when the folder holds none, a damaged one, or one without a pad token.
    """
    try:
        tokenizer = read_tokenizer(folder)
    except (OSError, ValueError) as error:
        files = "tokenizer.json (or vocab.txt) and tokenizer_config.json"
        raise unreadable("tokenizer", folder, error, files) from None
    check_tokenizer(tokenizer, str(folder))
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Refuse a tokenizer that cannot put texts of different lengths into one batch.

    Raises ArtifactError when there is no pad token.
    """
    if tokenizer.pad_token_id is None:
        raise ArtifactError(
            f"The tokenizer of {place!r} has no pad token, so texts of different lengths cannot share a batch. Name "
            "one as pad_token in its tokenizer_config.json, or give a BERT-style tokenizer."
        )


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int, pad_to: int | None = None
) -> TextBatch:
    """Token ids of texts, cut on the right at `length` (special tokens included), padded on the right.

    Rows are padded to the longest one of the batch, or to `pad_to` (the paper pads to the full length).

    Raises DataError for an empty list. A blank text becomes [CLS] [SEP]: benchmarks have some (CIRR test pair 27098);
    training and search refuse them earlier.
    """
    if not texts:
        raise DataError("There is no text to encode. Give at least one modification text.")
    padding = {"padding": True} if pad_to is None else {"padding": "max_length"}
    encoded = tokenizer(list(texts), truncation=True, max_length=pad_to or length, return_tensors="pt", **padding)
    return TextBatch(encoded["input_ids"], encoded["attention_mask"])
