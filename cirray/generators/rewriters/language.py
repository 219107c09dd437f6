"""Any local language model as a rewriter: the data set's instruction, batched, greedy (CIReVL).

CIReVL asks a hosted model, which may drift; here weights' digest, instruction and its hash are kept with every text.
Batches are padded on the left, so neighbours change an answer only by rounding; with `batch=1` not even so. An answer
without an end is cut at `new_tokens`, which is more than CLIP reads.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch

from cirray.core.contents import directory_digest
from cirray.core.errors import ConfigError
from cirray.generators.rewriters.base import Ask, RewriterSetup
from cirray.generators.rewriters.config import REWRITERS, LanguageConfig
from cirray.models.towers.language import LanguageModel, language_dtype, load_language_model
from cirray.types import stable_id

_LABEL = re.compile(r"^(new|edited|changed)?\s*(caption|description)\s*:\s*", re.IGNORECASE)


@REWRITERS.register("language")
class LanguageRewriter:
    """A folder or hub id that `load_language_model` reads; loaded at the first question that is not cached."""

    def __init__(self, settings: LanguageConfig, setup: RewriterSetup) -> None:
        """Nothing is loaded yet."""
        self._settings, self._setup = settings, setup

    @cached_property
    def digest(self) -> str:
        """Over weights, instruction, precision and the length of answers."""
        settings = self._settings
        local = Path(settings.source).expanduser()
        known = directory_digest(str(local)) if local.is_dir() else self._commit()
        return stable_id(
            "language-rewriter",
            known,
            settings.template,
            settings.chat,
            settings.new_tokens,
            settings.language_dtype,
            settings.language_quantization,
        )

    @torch.inference_mode()
    def rewrite(self, asks: Sequence[Ask]) -> list[str]:
        """The first line that the model writes of each question. Raises ArtifactError: when no model can be read."""
        size = self._setup.batch
        return [text for begin in range(0, len(asks), size) for text in self._batch(asks[begin : begin + size])]

    @cached_property
    def _language(self) -> LanguageModel:
        settings = self._settings
        source = str(Path(settings.source).expanduser()) if settings.source.startswith("~") else settings.source
        dtype, device = language_dtype(settings.language_dtype), self._setup.device
        loaded = load_language_model(source, dtype, settings.language_quantization, device)
        if settings.language_quantization == "none":
            cast(Any, loaded.model).to(device)
        return loaded

    def _commit(self) -> str:
        """The hub's commit, or just the name if the cache does not have it."""
        return str(getattr(self._language.model.config, "_commit_hash", None) or self._settings.source)

    def _batch(self, asks: Sequence[Ask]) -> list[str]:
        language, device = self._language, self._setup.device
        rows = [self._ids(ask) for ask in asks]
        length = max(map(len, rows))
        ids_BT = torch.full((len(rows), length), language.pad_id, dtype=torch.int64)
        mask_BT = torch.zeros((len(rows), length), dtype=torch.int64)
        for number, row in enumerate(rows):
            ids_BT[number, length - len(row) :] = torch.tensor(row)
            mask_BT[number, length - len(row) :] = 1
        made_BT = cast(Any, language.model).generate(
            input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device), do_sample=False, num_beams=1,
            max_new_tokens=self._settings.new_tokens, pad_token_id=language.pad_id,
        )  # fmt: skip
        answers_BT = made_BT if language.encodes else made_BT[:, length:]
        return [answer(text) for text in language.tokenizer.batch_decode(answers_BT, skip_special_tokens=True)]

    def _ids(self, ask: Ask) -> list[int]:
        """The filled instruction, told as `chat` says.

        Raises:
            ConfigError: `turns` without a chat template.
        """
        tokenizer: Any = self._language.tokenizer
        templated, chat = bool(getattr(tokenizer, "chat_template", None)), self._settings.chat
        text = self._settings.template.format(caption=ask.caption, modification=ask.modification)
        if chat == "turns" and not templated:
            raise ConfigError(
                f"The tokenizer of {self._settings.source!r} has no chat template; set rewriter.settings.chat=auto."
            )
        if chat == "off" or not templated:
            return list(tokenizer(text)["input_ids"])
        framed = tokenizer.apply_chat_template(turns(text), tokenize=False, add_generation_prompt=True)
        return list(tokenizer(framed, add_special_tokens=False)["input_ids"])


def turns(text: str) -> list[dict[str, str]]:
    """A filled instruction as a conversation: paragraphs of examples, whose last lines hold the answers, are turns.

    The instruction stands before the first question. One without examples is a single turn.
    """
    head, *examples = text.split("\n\n")
    label = text.rpartition("\n")[2]
    if not examples or not label:
        return [{"role": "user", "content": text}]
    said: list[dict[str, str]] = []
    for example in examples:
        question, _, reply = example.partition(f"\n{label}")
        said += [{"role": "user", "content": question}, {"role": "assistant", "content": reply.strip()}]
    said[0]["content"] = f"{head}\n\n{said[0]['content']}"
    return said[:-1]


def answer(text: str) -> str:
    """The first line that is not blank, without the instruction's label and surrounding quotation marks."""
    lines = (_LABEL.sub("", " ".join(line.split())).strip("\"'` ") for line in text.splitlines())
    return next((line for line in lines if line), "")
