"""Questions to a model of Hugging Face in this process: the slow twin of a server.

A model with a processor for pictures answers questions with pictures; a text model answers those of text alone.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from cirray.core.contents import directory_digest
from cirray.core.seeding import derive_seed
from cirray.data.images import open_image
from cirray.generators.engines.base import Defect, Question, Reply, Shot, Tries
from cirray.generators.engines.config import ENGINES, HfEngineConfig
from cirray.models.quiet import quiet
from cirray.models.sources.files import READ_ERRORS, at_home, unreadable
from cirray.models.sources.pretrained import pretrained, pretrained_model
from cirray.models.sources.tokenizers import with_whole_tokenizer
from cirray.types import stable_id

_ENDLESS = 2**31
_FILES = "config.json, weights, and the files of tokenizer and, for pictures, processor"


@ENGINES.register("hf")
class HfEngine:
    """A folder or hub id; decoding is greedy unless a temperature is set."""

    def __init__(self, settings: HfEngineConfig, device: str) -> None:
        """Load the model.

        Raises:
            ArtifactError: when nothing readable is there.
        """
        self._settings, self._device = settings, device
        self._place = at_home(settings.source)
        try:
            with quiet():
                config = pretrained(AutoConfig, self._place)
                self._sees = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
                with with_whole_tokenizer(self._place) as folder:
                    self._processor: Any = pretrained(AutoProcessor if self._sees else AutoTokenizer, folder)
                kind = AutoModelForImageTextToText if self._sees else AutoModelForCausalLM
                self._model, _ = pretrained_model(kind, self._place, dtype=self._dtype)
        except READ_ERRORS as error:
            raise unreadable("large model", settings.source, error, _FILES) from None
        self._model = self._model.to(device).eval()
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    @cached_property
    def digest(self) -> str:
        """Over weights, precision and how the model answers."""
        local = Path(self._place).is_dir()
        version = directory_digest(self._place) if local else getattr(self._model.config, "_commit_hash", "")
        settings = self._settings
        known = version or settings.source
        return stable_id("hf engine", known, settings.max_tokens, settings.temperature, self._dtype)

    @torch.inference_mode()
    def ask(self, questions: Sequence[Question], defect: Defect) -> list[Reply]:
        """See `Engine.ask`. Answers with a defect are asked for again after all others, less greedily."""
        most, size = self._settings.tries, self._settings.batch
        tries, settled = [Tries() for _ in questions], dict[int, Reply]()
        for attempt in range(most):
            left = [place for place in range(len(questions)) if place not in settled]
            for places in (left[begin : begin + size] for begin in range(0, len(left), size)):
                replies = self._batch([questions[place] for place in places], tries[places[0]].least, attempt)
                for place, reply in zip(places, replies, strict=True):
                    if found := tries[place].settled(reply, defect, most, attempt + 1 == most):
                        settled[place] = found
        return [settled[place] for place in range(len(questions))]

    @property
    def _dtype(self) -> torch.dtype:
        if self._settings.dtype != "auto":
            return torch.bfloat16 if self._settings.dtype == "bfloat16" else torch.float32
        return torch.float32 if self._device == "cpu" else torch.bfloat16

    def _batch(self, questions: Sequence[Question], least: float, attempt: int) -> list[Reply]:
        """Answers at no lower temperature than `least`; what is drawn is the same for the same questions."""
        shown = [[part for part in question.parts if isinstance(part, Shot)] for question in questions]
        if any(shown) and not self._sees:
            return [Reply("", f"{self._settings.source!r} is a language model without vision")] * len(questions)
        inputs = self._inputs(questions, shown)
        read, most = inputs["attention_mask"].sum(dim=1).tolist(), self._context - self._settings.max_tokens
        if max(read) > most:
            able = [question for question, count in zip(questions, read, strict=True) if count <= most]
            answered = iter(self._batch(able, least, attempt) if able else [])
            return [next(answered) if count <= most else self._too_long(count) for count in read]
        heat, limit = max(self._settings.temperature, least), self._settings.max_tokens
        sampling = {"do_sample": True, "temperature": heat} if heat else {"do_sample": False}
        with torch.random.fork_rng([self._device] if torch.device(self._device).type == "cuda" else []):
            torch.manual_seed(derive_seed(attempt, *inputs["input_ids"].flatten().tolist()))
            ids_BT = self._model.generate(
                **inputs, max_new_tokens=limit, pad_token_id=self._tokenizer.pad_token_id, **sampling
            )
        new_BT = ids_BT[:, inputs["input_ids"].shape[1] :]
        written = (new_BT != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        texts = self._tokenizer.batch_decode(new_BT, skip_special_tokens=True)
        ends = self._ends
        cuts = [limit * (row_T[-1].item() not in ends and len(row_T) == limit) for row_T in new_BT]
        return [Reply(text.strip(), "", *told) for text, *told in zip(texts, read, written, cuts, strict=True)]

    @cached_property
    def _context(self) -> int:
        """Tokens of question and answer together that the model was made for."""
        return int(getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or _ENDLESS)

    def _too_long(self, count: int) -> Reply:
        return Reply(
            "", f"the question has {count:,} tokens, and the answer up to max_tokens={self._settings.max_tokens}: "
            f"together more than the {self._context:,} of the model's context"
        )  # fmt: skip

    @cached_property
    def _ends(self) -> set[int]:
        """Ids that stand where an answer has ended."""
        named = self._model.generation_config.eos_token_id
        return {self._tokenizer.pad_token_id, *(named if isinstance(named, list) else [named])}

    def _inputs(self, questions: Sequence[Question], shown: Sequence[Sequence[Shot]]) -> Any:
        texts = [self._framed(question) for question in questions]
        if not any(shown):
            return self._tokenizer(texts, return_tensors="pt", padding=True).to(self._device)
        images = [[open_image(shot.data, name=shot.picture_id) for shot in shots] for shots in shown]
        inputs = self._processor(images=images, text=texts, return_tensors="pt", padding=True).to(self._device)
        for name in ("pixel_values", "pixel_values_videos"):
            if name in inputs:
                inputs[name] = inputs[name].to(self._model.dtype)
        return inputs

    def _framed(self, question: Question) -> str:
        """A question in the model's own frame, where it has one."""
        parts = [
            {"type": "image"} if isinstance(part, Shot) else {"type": "text", "text": part} for part in question.parts
        ]
        framer = self._processor if getattr(self._processor, "chat_template", None) else self._tokenizer
        if not getattr(framer, "chat_template", None):
            return "".join(str(part["text"]) for part in parts if "text" in part)
        plain = not self._sees
        content: Any = "".join(str(part["text"]) for part in parts) if plain else parts
        messages = [{"role": "user", "content": content}]
        return str(framer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
