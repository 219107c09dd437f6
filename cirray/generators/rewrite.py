"""A filled template in other words, by a language model shown examples (SPN's optional step; off by default)."""

from typing import Any, cast

import torch

from cirray.models.seeded import torch_seed
from cirray.models.towers.language import load_language_model

EXAMPLES = (
    ("two brown dogs on grass instead of a cat in a basket", "swap the cat for two brown dogs and put them on grass"),
    ("unlike a red car at night, I want a red car in the snow", "show the red car in daylight with snow around it"),
    ("a bowl of soup instead of a plate with three cakes", "have soup in a bowl and no cakes"),
    ("unlike a man reading on a bench, I want an empty bench", "take the man away and leave the bench empty"),
    ("a bird with open wings instead of a bird on a branch", "let the bird fly with its wings open"),
)


class Rewriter:
    """Few-shot rewriting with top-k sampling, a pure function of the text and its seed."""

    def __init__(self, source: str, top_k: int = 10, new_tokens: int = 50, device: str = "cpu") -> None:
        """Load a language model. Raises ArtifactError: when none can be read there."""
        self._language = load_language_model(source)
        self._model = cast(Any, self._language.model)
        self._model.to(device)
        self._top_k, self._limit, self._device = top_k, new_tokens, device

    @torch.inference_mode()
    def __call__(self, text: str, seed: int) -> str:
        """The first line that the model writes after the examples; empty when it writes none."""
        ids = list(self._language.tokenizer(self.prompt(text))["input_ids"])
        prompt_1T = torch.tensor([ids], device=self._device)
        with torch_seed(seed % 2**31):
            made = self._model.generate(
                input_ids=prompt_1T, attention_mask=torch.ones_like(prompt_1T), do_sample=True, top_k=self._top_k,
                max_new_tokens=self._limit, pad_token_id=self._language.pad_id,
            )  # fmt: skip
        answer = made[0] if self._language.encodes else made[0, len(ids) :]
        lines = str(self._language.tokenizer.decode(answer, skip_special_tokens=True)).splitlines()
        return next((line.strip() for line in lines if line.strip()), "")

    @staticmethod
    def prompt(text: str) -> str:
        """The examples, and the text to be rewritten last."""
        shown = "".join(f"Text: {before}\nRewritten: {after}\n\n" for before, after in EXAMPLES)
        return f"Rewrite the text as a short request to change an image.\n\n{shown}Text: {text}\nRewritten:"
