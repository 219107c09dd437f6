"""Any image-to-text model of Hugging Face (LLaVA, BLIP, BLIP-2 ...): batched, greedy.

SPN captions with LLaVA, one image a call, at a temperature and top-p of 0.01; greedy decoding is the limit of that
(docs/PAPERS.md#captions-and-templates).
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from cirray.core.contents import directory_digest
from cirray.core.errors import ArtifactError
from cirray.data.images import open_image, read_place
from cirray.data.places import Place
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import CAPTIONERS, HfConfig
from cirray.generators.captioners.lmm import first_line
from cirray.models.quiet import quiet
from cirray.models.sources.files import READ_ERRORS, unreadable
from cirray.models.sources.hub import at_home
from cirray.models.sources.pretrained import pretrained, pretrained_model
from cirray.models.sources.tokenizers import with_whole_tokenizer
from cirray.types import stable_id

_TOKENS_PER_WORD, _SPARE = 3, 12
_FILES = "config.json, weights, and the files of tokenizer and processor"


@CAPTIONERS.register("hf")
class HfCaptioner:
    """A folder or hub id that `AutoModelForImageTextToText` and `AutoProcessor` read."""

    def __init__(self, settings: HfConfig, setup: CaptionerSetup) -> None:
        """Load model and processor. Raises ArtifactError: when nothing readable is there."""
        self._setup, self._instruction = setup, settings.instruction
        try:
            with quiet():
                place = at_home(settings.source)
                with with_whole_tokenizer(place) as folder:
                    self._processor: Any = pretrained(AutoProcessor, folder)
                kind = torch.float32 if setup.device == "cpu" else torch.bfloat16
                model, report = pretrained_model(AutoModelForImageTextToText, place, dtype=kind)
        except READ_ERRORS as error:
            raise unreadable("image-to-text model", settings.source, error, _FILES) from None
        if report["missing_keys"]:
            missing = sorted(report["missing_keys"])
            raise ArtifactError(
                f"{settings.source!r} lacks {len(missing)} tensors of its image-to-text model, e.g. {missing[0]!r}."
            )
        self._model = model.to(setup.device).eval()
        self._limit = _TOKENS_PER_WORD * settings.words + _SPARE
        tokenizer = getattr(self._processor, "tokenizer", self._processor)
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        local = Path(place).is_dir()
        version = directory_digest(place) if local else getattr(model.config, "_commit_hash", "")
        self.digest = stable_id("hf-captioner", version or settings.source, self._text(), self._limit)

    def content(self, picture: Picture) -> bytes:
        """The image file's bytes. Raises DataError: for a file that cannot be read."""
        place, data = self._read(picture)
        open_image(data, self._setup.limits, picture.image_id, place.box)
        return data + repr(place.box).encode()

    @torch.inference_mode()
    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """The first line that the model writes of each image."""
        texts: list[str] = []
        for begin in range(0, len(pictures), self._setup.batch):
            texts += self._batch(pictures[begin : begin + self._setup.batch])
        return texts

    def _batch(self, pictures: Sequence[Picture]) -> list[str]:
        images = [self._open(picture) for picture in pictures]
        inputs = self._processor(
            images=images, text=[self._text()] * len(images), return_tensors="pt", padding=True
        ).to(self._setup.device)  # fmt: skip
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        known = {name: value for name, value in inputs.items() if self._takes(name)}
        ids_BT = self._model.generate(**known, do_sample=False, num_beams=1, max_new_tokens=self._limit)
        prompt_BT = inputs["input_ids"]
        length = prompt_BT.shape[1]
        if ids_BT.shape[1] >= length and bool((ids_BT[:, :length] == prompt_BT).all()):
            ids_BT = ids_BT[:, length:]  # some models repeat the prompt
        rows = self._processor.batch_decode(ids_BT, skip_special_tokens=True)
        return [first_line(text) for text in rows]

    def _open(self, picture: Picture) -> Any:
        place, data = self._read(picture)
        return open_image(data, self._setup.limits, picture.image_id, place.box)

    def _read(self, picture: Picture) -> tuple[Place, bytes]:
        """An image's place, and its bytes: a file or a part of one."""
        place = Place.parse(picture.place)
        return place, read_place(place, self._setup.limits, picture.image_id)

    def _text(self) -> str:
        """The prompt, in the model's own frame where it has one (LLaVA's conversation with its image token)."""
        if not getattr(self._processor, "chat_template", None):
            return self._instruction
        content = [{"type": "image"}, {"type": "text", "text": self._instruction}]
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True))

    def _takes(self, name: str) -> bool:
        """BERT-style tokenizers add token types, which not every model knows."""
        return name != "token_type_ids" or name in inspect.signature(self._model.forward).parameters
