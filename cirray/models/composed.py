"""The composed-image retriever: one Q-Former for queries and gallery, over frozen patch tokens.

BLIP-2's gallery side, SPRC's two-pass query side, PTHA's readout and extra outputs (docs/PAPERS.md#two-hop-alignment).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from cirray.core.config import validate
from cirray.core.errors import ConfigError
from cirray.core.trees import leaves, merged
from cirray.models.base import NOTHING_MORE, RETRIEVERS, Retriever, RetrieverKind, torch_seed
from cirray.models.batch import RetrievalBatch, RetrieverOutput, TextBatch, Wanted
from cirray.models.config import RetrieverConfig
from cirray.models.fusion.base import Fused, Fusion
from cirray.models.fusion.config import HEADS
from cirray.models.matching import MATCHERS, MatchingHead, Sides, matching
from cirray.models.qformer import QueryingTransformer
from cirray.models.scoring import Projection, unit
from cirray.models.text import build_tokenizer, encode_texts, load_tokenizer
from cirray.models.text_processors import process

CHANGEABLE = (
    "fusion", "text_length", "text_processor", "temperature", "temperature_clamp", "readout", "inference_readout",
    "text_mask", "similarity", "matching", "gradient_checkpointing", "qformer.dropout", "qformer.attention",
)  # fmt: skip
"""Fields of a `RetrieverConfig` that weights do not fix."""


class QFormerRetriever(Retriever):
    """Encodes (reference, text) into a query vector and images into gallery tokens; all outputs L2-normalised."""

    kind = "qformer"
    config: RetrieverConfig

    def __init__(self, config: RetrieverConfig, tokenizer: PreTrainedTokenizerBase, patch_width: int) -> None:
        """Random start weights from the global torch generator (see `build_retriever` for a seeded one)."""
        super().__init__()
        self.config, self.tokenizer, self.patch_width = config, tokenizer, patch_width
        self.fusion: Fusion = HEADS.get(config.fusion.kind)(config.fusion.settings)
        width = config.qformer.width
        self.qformer = QueryingTransformer(config.qformer, patch_width, len(tokenizer))
        self.text_projection = Projection(width, config.embed_dim)
        self.vision_projection = Projection(width, config.embed_dim)
        self.prompts = nn.Parameter(torch.empty(config.qformer.queries, width))
        nn.init.normal_(self.prompts, std=config.prompt_std)
        # One element, not a scalar: ZeRO cannot partition or broadcast parameters without a dimension.
        self.raw_temperature = nn.Parameter(torch.tensor([config.temperature]))
        self.temperature_range = config.temperature_clamp
        if config.gradient_checkpointing:
            self.qformer.enable_checkpointing()
        # Last, so that the other start weights do not depend on it.
        self.matching_head = None if config.matching == "none" else MatchingHead(width)
        if self.matching_head is not None:
            self.matching_head.requires_grad_(config.matching == "trained")

    @property
    def active_readout(self) -> str:
        """Pass B's readout: training's, or at inference `inference_readout` if set."""
        return self.config.readout if self.training else (self.config.inference_readout or self.config.readout)

    def token_ids(self, texts: Sequence[str]) -> TextBatch:
        """Token ids on the model's device. Raises DataError: for an empty list."""
        return encode_texts(self.tokenizer, texts, self.config.text_length).to(self.device)

    def encode_reference(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """The part of the query that does not depend on the text (cacheable): the frozen patches."""
        return patches_BPD.to(self.device, self.raw_temperature.dtype)

    def fuse(self, state_BPD: torch.Tensor, text: TextBatch) -> Fused:
        """Query and prototypes of reference states and texts."""
        return self.fusion(self, state_BPD, text)

    def compose(self, state_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """Query vectors `[B, D]`, norm 1."""
        return self.fuse(state_BPD, text).query_BD

    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Gallery tokens `[B, Q, D]`, each of norm 1 (Q = 1 for `similarity: dot`)."""
        tokens_BQW = self.qformer.image(self.encode_reference(patches_BPD))
        if self.config.similarity == "dot":
            # The projection is affine: the mean before it is the mean after it.
            tokens_BQW = tokens_BQW.mean(dim=1, keepdim=True)
        return unit(tokens_BQW, self.vision_projection)

    def prototypes(self, patches_BPD: torch.Tensor, text: TextBatch) -> torch.Tensor:
        """Pass A, PTHA's P: `[B, Q, W]`, neither projected nor normalised."""
        return self.qformer.image(patches_BPD, text)

    def encode_text(self, text: TextBatch) -> torch.Tensor:
        """PTHA's text-only branch f_m: [CLS], the learned prompts, the rest of the text; read at [CLS]: `[B, D]`."""
        words_BTW = self.qformer.embed_words(text.ids_BT)
        prompts_BQW = self.prompts.expand(len(text), -1, -1)
        tokens_BLW = self.qformer.add_positions(torch.cat([words_BTW[:, :1], prompts_BQW, words_BTW[:, 1:]], dim=1))
        ones = text.mask_BT.new_ones(prompts_BQW.shape[:2])
        mask_BL = torch.cat([text.mask_BT[:, :1], ones, text.mask_BT[:, 1:]], dim=1)
        return self.project_text(self.qformer.text_only(tokens_BLW, mask_BL, read=1)[:, 0])

    def project_text(self, summary_BW: torch.Tensor) -> torch.Tensor:
        """Text projection and L2 norm: `[B, D]`."""
        return unit(summary_BW, self.text_projection)

    def forward(self, batch: RetrievalBatch, wanted: Wanted = NOTHING_MORE) -> RetrieverOutput:
        """All outputs that an objective needs, in one forward pass.

        Raises ConfigError when the fusion head makes no prototypes but they are wanted, or matching is wanted without
        its head.
        """
        self.refuse(wanted, frozenset(MATCHERS))
        fused = self.fuse(self.encode_reference(batch.reference_BPD), batch.text)
        targets_BQD, references_BQD = self._gallery_sides(batch, wanted.references)
        return RetrieverOutput(
            query_BD=fused.query_BD, target_BQD=targets_BQD, temperature=self.temperature,
            reference_BQD=references_BQD, negative_MQD=self.encode_negatives(batch),
            prototype_BW=self._mean_prototypes(fused, wanted),
            text_query_BD=self.encode_text(batch.text) if wanted.text_only else None,
            reverse_prototype_BW=self._reverse_prototypes(batch) if wanted.reverse else None,
            prompts_BW=self._held_prompts(len(batch.text)) if wanted.prompts else None,
            more={
                name: logits for way in sorted(wanted.more)
                for name, logits in matching(
                    self, way, batch, Sides(fused.query_BD, targets_BQD, references_BQD)
                ).items()
            },
        )  # fmt: skip

    def changed(self, settings: Mapping[str, Any]) -> "QFormerRetriever":
        """The same weights with other settings; a new matching head starts at random.

        Raises ConfigError for a setting that the weights fix, or for a fixed matching head when there is none.
        """
        config = changed_config(self.config, settings, "the checkpoint")
        made = QFormerRetriever(config, self.tokenizer, self.patch_width)
        own = made.state_dict()
        made.load_state_dict({**own, **{name: value for name, value in self.state_dict().items() if name in own}})
        if "temperature" in settings:
            with torch.no_grad():
                made.raw_temperature.fill_(config.temperature)
        return made.to(self.device)

    def description(self) -> dict[str, Any]:
        """Configuration, for `config.json`; without a matching head the field is left out, which keeps digests."""
        fields = self.config.to_dict()
        if self.matching_head is None:
            del fields["matching"]
        return {"retriever": fields}

    def save_words(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        self.tokenizer.save_pretrained(str(folder))

    def vocabulary(self) -> Mapping[str, int]:
        """Word piece -> id."""
        return self.tokenizer.get_vocab()

    def _gallery_sides(self, batch: RetrievalBatch, references: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not references:
            return self.encode_gallery(batch.target_BPD), None
        sides = [self.encode_reference(batch.target_BPD), self.encode_reference(batch.reference_BPD)]
        both = self.encode_gallery(torch.cat(sides))
        targets, others = both.chunk(2)
        return targets, others

    def _mean_prototypes(self, fused: Fused, wanted: Wanted) -> torch.Tensor | None:
        if not (wanted.reverse or wanted.prompts):
            return None
        if fused.prototype_BQW is None:
            term, name = "two_hop" if wanted.reverse else "prompt_align", self.config.fusion.kind
            raise ConfigError(f"Fusion {name!r} makes no prototypes; the term {term} needs 'two_pass'.")
        return fused.prototype_BQW.mean(dim=1)

    def _held_prompts(self, rows: int) -> torch.Tensor:
        """Mean of the learned prompts, which SPRC draws prototypes to; a copy, because ZeRO 3 releases parameters."""
        return self.prompts.detach().mean(dim=0).expand(rows, -1)

    def _reverse_prototypes(self, batch: RetrievalBatch) -> torch.Tensor | None:
        if batch.reverse is None:
            return None
        with torch.no_grad():
            return self.prototypes(self.encode_reference(batch.target_BPD), batch.reverse).mean(dim=1)


def changed_config(config: RetrieverConfig, settings: Mapping[str, Any], place: str) -> RetrieverConfig:
    """A configuration of existing weights with some fields changed; one that the weights fix may be given with its own
    value.

    Raises ConfigError naming the first field that the weights fix, or a value that no field takes.
    """
    wanted = validate(RetrieverConfig, merged(config.to_dict(), settings))
    own, new = leaves(config.to_dict()), leaves(wanted.to_dict())
    fixed = [
        name
        for name in leaves(settings)
        if name not in CHANGEABLE and not name.startswith("fusion.") and new.get(name) != own.get(name)
    ]
    if fixed:
        raise ConfigError(
            f"encoder.settings.{fixed[0]} is {new[fixed[0]]!r}, but {place} has {own[fixed[0]]!r} and keeps it. Leave "
            f"it out, or start without that checkpoint; beside one these can be changed: {', '.join(CHANGEABLE)}."
        )
    if wanted.matching == "frozen" and config.matching == "none":
        raise ConfigError("The checkpoint has no matching head to hold fixed; set encoder.settings.matching=trained.")
    return wanted


def build_retriever(
    config: RetrieverConfig, tokenizer: PreTrainedTokenizerBase, patch_width: int, seed: int = 0
) -> QFormerRetriever:
    """A retriever with start weights that depend on the seed alone."""
    with torch_seed(seed):
        return QFormerRetriever(config, tokenizer, patch_width)


def _build(config: RetrieverConfig, texts: Sequence[str], patch_width: int, seed: int) -> QFormerRetriever:
    return build_retriever(config, build_tokenizer(process(config.text_processor, texts)), patch_width, seed)


def _load(description: Mapping[str, Any], folder: Path) -> QFormerRetriever:
    config = validate(RetrieverConfig, description["retriever"])
    return QFormerRetriever(config, load_tokenizer(folder), int(description["patch_width"]))


def _check(config: RetrieverConfig, patch_width: int) -> None:
    """Whatever a configuration says can be built."""


def _check_changes(description: Mapping[str, Any], settings: Mapping[str, Any], place: str) -> RetrieverConfig:
    return changed_config(validate(RetrieverConfig, description["retriever"]), settings, place)


RETRIEVERS.register(QFormerRetriever.kind)(RetrieverKind(_build, _load, _check, _check_changes))
