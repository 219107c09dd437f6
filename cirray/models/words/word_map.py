"""The pseudo-word retriever: query = n(E("a photo of $ that {text}", s)), gallery = CLIP's image embedding.

Two-stage mapping/composing, after arXiv 2504.17990 (docs/PAPERS.md#two-stage-zero-shot), and its baselines Pic2Word,
SEARLE and LinCIR, which differ only in phi's shape and training. The image side is frozen and has no weights here, so
that an index stays valid after every update of the text side.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from cirray.core.config import validate
from cirray.core.contents import canonical
from cirray.core.errors import ConfigError
from cirray.models.base import NOTHING_MORE, RETRIEVERS, Retriever, RetrieverKind, torch_seed
from cirray.models.batch import RetrievalBatch, RetrieverOutput, TextBatch, Wanted
from cirray.models.towers.backbones import BACKBONES, load_text_encoder, no_texts
from cirray.models.words.adapters import Adapters
from cirray.models.words.config import WordMapConfig
from cirray.models.words.injection import Injection
from cirray.models.words.phi import Phi
from cirray.models.words.prompts import PromptBatch, PromptWriter
from cirray.models.words.sockets import open_sockets, slots_filled

PLAIN = "plain"
"""Further output of a training forward pass: the pseudo-sentences of the batch's references, `[B, D]`, norm 1."""
CLIP = "clip"
"""Folder of the whole CLIP in a towers artifact of `cirray clip`."""
_CHANGEABLE = frozenset(
    {"query", "query_prompt", "text_processor", "tuning", "adapter_width", "lora_rank", "temperature"}
)


class WordMapRetriever(Retriever):
    """Frozen CLIP text encoder with a slot, phi, visual semantic injection, adapters.

    Trained parts: the text encoder's adapters at first (the composing stage); `train_mapping` switches to phi and
        injection (the mapping stage).
    """

    kind = "word_map"
    config: WordMapConfig

    def __init__(self, config: WordMapConfig, text_encoder: Any, backbone: str, patch_width: int) -> None:
        """Random phi, injection and adapters (which change nothing) around a backbone's text encoder.

        The first of the frozen tower's tokens, of `patch_width`, is the image embedding.

        Raises ConfigError when tokens are narrower than the texts' vectors, or a prompt has not exactly one slot.
        """
        super().__init__()
        embed_dim = int(text_encoder.embed_dim)
        if patch_width < embed_dim:
            raise ConfigError(
                f"The tower's tokens have width {patch_width}, the texts' vectors {embed_dim}. Make the features with "
                "the tower of the same CLIP."
            )
        self.config = config.model_copy(update={"embed_dim": embed_dim, "source": ""})
        self.backbone, self.patch_width, self.text_encoder = backbone, patch_width, text_encoder
        self._sockets = open_sockets(text_encoder)
        self._writer = PromptWriter(
            self._sockets.alphabet, config.prompt, config.query_prompt, config.tokens, config.text_length
        )
        width, norm = self._sockets.width, float(self._sockets.table.weight.detach().norm(dim=1).mean())
        self.phi = Phi(config.phi, embed_dim, width, config.tokens, norm)
        if config.injection.layers and width % config.injection.heads:
            raise ConfigError(f"injection.heads {config.injection.heads} must divide the words' width {width}.")
        self.injection = Injection(config.injection, patch_width, width) if config.injection.layers else None
        self.adapters = Adapters(self._sockets, config.tuning, config.adapter_width, config.lora_rank)
        self.raw_temperature = nn.Parameter(torch.tensor([config.temperature]), requires_grad=False)
        self.train_composing()

    def train_mapping(self) -> "WordMapRetriever":
        """Train only phi and injection (stage 1)."""
        self.requires_grad_(False)
        for part in self._mapping_parts():
            part.requires_grad_(True)
        return self

    def train_composing(self) -> "WordMapRetriever":
        """Train only the text encoder's adapters, or (`tuning=full`) the text encoder (stage 2)."""
        self.requires_grad_(False)
        self.adapters.requires_grad_(True)
        self.text_encoder.requires_grad_(self.config.tuning == "full")
        return self

    def train(self, mode: bool = True) -> "WordMapRetriever":
        """Training mode; frozen parts have no dropout."""
        super().train(mode)
        for part in (*self._mapping_parts(), self.text_encoder):
            if not any(weight.requires_grad for weight in part.parameters()):
                part.eval()
        return self

    def token_ids(self, texts: Sequence[str]) -> TextBatch:
        """The query prompts of texts, on the model's device; an empty text is the image's own prompt.

        Raises DataError for an empty list.
        """
        if self.config.query != "composed":
            return self.text_encoder.tokenize(texts, self.config.text_length).to(self.device)
        return self._writer(texts).to(self.device)

    @property
    def writer(self) -> PromptWriter:
        """Texts and phrases to rows with slots."""
        return self._writer

    @property
    def word_table(self) -> torch.Tensor:
        """The word embeddings `[V, W]`."""
        return self._sockets.table.weight

    @property
    def target_digest(self) -> str:
        """Digest of the gallery side: an index serves every checkpoint with this digest and the same tower."""
        facts = {"kind": self.kind, "embed_dim": self.config.embed_dim, "patch_width": self.patch_width}
        return hashlib.blake2b(canonical(facts).encode(), digest_size=16).hexdigest()

    def target_weights(self) -> dict[str, nn.Parameter]:
        """None: gallery vectors are the frozen tower's own."""
        return {}

    def encode_reference(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The state of references: their tokens `[B, N, W]`, or (training-free rows) their embeddings `[B, 1, D]`.

        Raises ConfigError when injection has no patches to read.
        """
        patches_BPD = patches_BPD.to(self.device, self.raw_temperature.dtype)
        if self.config.query != "composed":
            return self._image(patches_BPD)[:, None]
        return self.map_tokens(self._image(patches_BPD), patches_BPD)

    def map_tokens(self, image_BD: torch.Tensor, patches_BPD: torch.Tensor | None) -> torch.Tensor:
        """Tokens of image embeddings and (for injection) of all their tower's tokens: `[B, N, W]`.

        Raises ConfigError when injection has no patches to read.
        """
        tokens_BNW = self.phi(image_BD)
        if self.injection is None:
            return tokens_BNW
        if patches_BPD is None or patches_BPD.shape[1] < 2:
            raise ConfigError(
                "Visual semantic injection reads patch tokens, but the features hold the image embedding alone. Make "
                "the tower with clip_tokens=all or unprojected, or set injection.layers=0."
            )
        return self.injection(tokens_BNW, patches_BPD[:, 1:])

    def read(self, text: TextBatch, tokens_BNW: torch.Tensor) -> torch.Tensor:
        """E(prompt, s): vectors `[B, D]` of prompts with tokens in their slots, not normalised."""
        assert isinstance(text, PromptBatch)
        with slots_filled(text.slot_BT, tokens_BNW):
            return self.text_encoder(text)

    def read_captions(self, captions: Sequence[str]) -> torch.Tensor:
        """Vectors `[B, D]` of captions, not normalised. Raises DataError: for an empty list."""
        text = self.text_encoder.tokenize(self.processed(captions), self.config.text_length)
        return self.text_encoder(text.to(self.device))

    def pseudo_sentences(self, tokens_BNW: torch.Tensor) -> torch.Tensor:
        """u: vectors `[B, D]` of the images' own prompts, norm 1."""
        return unit(self.read(self._writer.plain(len(tokens_BNW)).to(self.device), tokens_BNW))

    def compose(self, state: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """Query vectors `[B, D]`, norm 1."""
        if self.config.query == "composed":
            return unit(self.read(text, state))
        image_BD = unit(state[:, 0])
        if self.config.query == "image":
            return image_BD
        text_BD = unit(self.text_encoder(text))
        return text_BD if self.config.query == "text" else unit(image_BD + text_BD)

    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """CLIP's image embeddings `[B, 1, D]`, norm 1."""
        return unit(self._image(patches_BPD.to(self.device, self.raw_temperature.dtype)))[:, None]

    def forward(self, batch: RetrievalBatch, wanted: Wanted = NOTHING_MORE) -> RetrieverOutput:
        """All outputs that an objective needs, in one forward pass.

        Raises ConfigError for an output that this kind does not make.
        """
        self.refuse(wanted, frozenset({PLAIN}))
        if wanted.reverse or wanted.prompts or wanted.text_only:
            raise ConfigError(
                "A pseudo-word retriever has neither prototypes nor a text-only branch; use objective composing, or "
                "set training.terms.rtc, two_hop and prompt_align to 0."
            )
        state = self.encode_reference(batch.reference_BPD)
        return RetrieverOutput(
            query_BD=self.compose(state, batch.text), target_BQD=self.encode_gallery(batch.target_BPD),
            temperature=self.temperature, negative_MQD=self.encode_negatives(batch),
            reference_BQD=self.encode_gallery(batch.reference_BPD) if wanted.references else None,
            more={PLAIN: self.pseudo_sentences(state)} if PLAIN in wanted.more else {},
        )  # fmt: skip

    def changed(self, settings: Mapping[str, Any]) -> "WordMapRetriever":
        """The same phi, injection and text encoder with other adapters or another query.

        Raises ConfigError for a setting that the weights fix.
        """
        config = changed_words(self.config.to_dict(), settings)
        self.adapters.unplug()
        made = WordMapRetriever(config, self.text_encoder, self.backbone, self.patch_width)
        made.phi.load_state_dict(self.phi.state_dict())
        if self.injection is not None and made.injection is not None:
            made.injection.load_state_dict(self.injection.state_dict())
        return made

    def description(self) -> dict[str, Any]:
        """Configuration, backbone and the text encoder's sizes, for `config.json`; no path of the source."""
        return {
            "retriever": self.config.to_dict(), "backbone": self.backbone, "text": self.text_encoder.description(),
        }  # fmt: skip

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.text_encoder.save_words(folder)

    def vocabulary(self) -> Mapping[str, int]:
        """Word piece -> id."""
        return self.text_encoder.vocabulary()

    def _image(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The image embedding: the first numbers of the tower's first token."""
        return patches_BPD[:, 0, : self.config.embed_dim]

    def _mapping_parts(self) -> list[nn.Module]:
        return [self.phi] if self.injection is None else [self.phi, self.injection]


def unit(vectors_BD: torch.Tensor) -> torch.Tensor:
    """L2-normalised in float32, also under autocast."""
    return functional.normalize(vectors_BD.float(), dim=-1)


def build_word_map(config: WordMapConfig, patch_width: int, seed: int = 0) -> WordMapRetriever:
    """A pseudo-word retriever around a CLIP's text encoder; random weights depend only on the seed.

    Raises ArtifactError when the source cannot be read, and ConfigError when the source is of no known backbone, or
    does not fit the tower's tokens.
    """
    inside = Path(config.source).expanduser() / CLIP
    source = str(inside) if (inside / "config.json").is_file() else config.source
    with torch_seed(seed):
        name, encoder = load_text_encoder(source) if source else ("", None)
        if not name:
            raise no_texts("The source", config.source, "a towers artifact of `cirray clip`; or ")
        return WordMapRetriever(config, encoder, name, patch_width)


def _build(config: WordMapConfig, texts: Sequence[str], patch_width: int, seed: int) -> WordMapRetriever:
    return build_word_map(config, patch_width, seed)


def _load(description: Mapping[str, Any], folder: Path) -> WordMapRetriever:
    backbone = str(description["backbone"])
    text = BACKBONES.get(backbone).build_text(description["text"], folder)
    config = validate(WordMapConfig, description["retriever"])
    return WordMapRetriever(config, text, backbone, int(description["patch_width"]))


def changed_words(own: Mapping[str, Any], settings: Mapping[str, Any]) -> WordMapConfig:
    """A saved configuration with some fields changed.

    Raises ConfigError for a setting that the weights fix, or a value that no field takes.
    """
    fixed = sorted(set(settings) - _CHANGEABLE)
    if fixed:
        raise ConfigError(
            f"encoder.settings.{fixed[0]} cannot be changed in a checkpoint. Beside init these can: "
            f"{', '.join(sorted(_CHANGEABLE))}."
        )
    return validate(WordMapConfig, {**own, **settings})


RETRIEVERS.register(WordMapRetriever.kind)(
    RetrieverKind(_build, _load, check_changes=lambda said, settings, place: changed_words(said["retriever"], settings))
)
