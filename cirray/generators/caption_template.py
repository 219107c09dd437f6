"""Modification texts from two captions and a template (SPN, step 3): no model call per pair.

text(r, t) = template(caption(r), caption(t)), e.g. "{t} instead of {r}"; above 77 CLIP tokens text(r, t) = caption(t)
(Feng et al., 2024; docs/PAPERS.md#captions-and-templates). The templates are data (`caption_templates.json`); seed and
pair choose one, and version and hash are kept with every text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch

from cirray.core.contents import directory_digest
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.seeding import derive_seed
from cirray.features.store import FeatureLookup
from cirray.models.base import torch_seed
from cirray.models.towers.language import load_language_model
from cirray.triplets.captions import caption_table, write_captions
from cirray.types import Generation, Pair, stable_id

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


KIND, CONFIG = "caption_template", "config.json"
_PART = "part-00000"


class CaptionTemplateGenerator:
    """Fills templates with the captions of a pair's images; the reverse text has them swapped."""

    def __init__(
        self,
        captions: Mapping[str, str],
        templates: Mapping[str, str],
        version: str,
        seed: int = 0,
        token_limit: int = 77,
        rewrite: Callable[[str, int], str] | None = None,
        source_digest: str = "",
    ) -> None:
        """Take captions (by image id) and templates (id -> pattern with `{reference}` and `{target}`).

        A text of more than `token_limit` CLIP tokens falls back to the target's caption alone. `rewrite` is (text,
        seed) -> text in other words, or None.
        """
        self._captions, self._templates, self._version = captions, dict(templates), version
        self._seed, self._limit, self._rewrite, self._source = seed, token_limit, rewrite, source_digest

    @property
    def digest(self) -> str:
        """16 hex digits over captions, templates, limit and seed."""
        content = self._source or stable_id(*(f"{image}:{text}" for image, text in sorted(self._captions.items())))
        return stable_id("caption-template", content, self.prompt_version, self._limit, self._seed)

    @cached_property
    def prompt_version(self) -> str:
        """File, ids and hash of the templates: `caption_templates/1:0+1#1a2b3c4d`."""
        content = stable_id(*(part for item in sorted(self._templates.items()) for part in item))
        return f"{self._version}:{'+'.join(self._templates)}#{content[:8]}"

    def generate(self, pairs: Sequence[Pair], features: FeatureLookup) -> list[Generation]:
        """One text and one reverse text per pair; a pair with an image that has no caption fails."""
        return [self._one(pair) for pair in pairs]

    def _one(self, pair: Pair) -> Generation:
        for image in (pair.reference_id, pair.target_id):
            if not self._captions.get(image, "").strip():
                return Generation(pair.pair_id, None, error=f"image {image!r} has no caption")
        names = list(self._templates)
        template = self._templates[names[derive_seed(self._seed, "template", pair.pair_id) % len(names)]]
        reference, target = self._captions[pair.reference_id], self._captions[pair.target_id]
        texts = [self._filled(template, *ends) for ends in ((reference, target), (target, reference))]
        if self._rewrite is not None:
            texts = [
                self._rewrite(text, derive_seed(self._seed, "rewrite", pair.pair_id, way)) or text
                for way, text in enumerate(texts)
            ]
        return Generation(pair.pair_id, texts[0], texts[1])

    def _filled(self, template: str, reference: str, target: str) -> str:
        text = template.format(reference=reference, target=target)
        return text if clip_tokens(text) <= self._limit else target


def clip_tokens(text: str) -> int:
    """Tokens of a text as CLIP counts them, start and end included."""
    return len(_tokenizer().encode(text)) + 2


@lru_cache(maxsize=1)
def _tokenizer() -> Any:
    from open_clip.tokenizer import SimpleTokenizer

    return SimpleTokenizer()


def pick_templates(ids: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Version of the file, and the templates of some ids in their order. Raises ConfigError: for an unknown id."""
    table = json.loads(files("cirray.generators").joinpath("caption_templates.json").read_text(encoding="utf-8"))
    unknown = [name for name in ids if name not in table["templates"]]
    if unknown:
        raise ConfigError(unknown_name("caption template", unknown[0], table["templates"]))
    return str(table["version"]), {name: table["templates"][name] for name in ids}


def save_caption_generator(
    folder: str | Path, rows: Sequence[Mapping[str, Any]], ids: Sequence[str], token_limit: int, rewrite: dict[str, Any]
) -> None:
    """Write a generator with its templates and a copy of the captions, so that it needs nothing else."""
    version, templates = pick_templates(ids)
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_captions(str(folder), _PART, sorted(rows, key=lambda row: row["image_id"]))
    description = {
        "kind": KIND, "version": version, "templates": templates, "token_limit": token_limit, "rewrite": rewrite,
    }  # fmt: skip
    (Path(folder) / CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def load_caption_generator(
    folder: str | Path, description: Mapping[str, Any], device: str, seed: int
) -> CaptionTemplateGenerator:
    """Read what `save_caption_generator` wrote."""
    table = caption_table(str(folder))
    captions = dict(zip(*(table.column(name).to_pylist() for name in ("image_id", "caption")), strict=True))
    rewrite = dict(description["rewrite"])
    return CaptionTemplateGenerator(
        captions, description["templates"], str(description["version"]), seed, int(description["token_limit"]),
        Rewriter(device=device, **rewrite) if rewrite.get("source") else None, directory_digest(folder),
    )  # fmt: skip
