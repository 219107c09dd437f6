"""The modification-text generator's network: three Q-Former passes, one projection, a frozen causal language model.

Zhou et al., 2025 (docs/PAPERS.md#modification-text-generator): q_r and q_t read one image each, q_c reads both with the
instruction; the language model reads `proj(q_r) | proj(q_t) | proj(q_c) | start token | instruction | answer` and is
trained on the answer alone: L = -1/T sum_t log p(y_t | prefix, y_<t). What else stands around the request is the
language model's own (`frames.py`): a chat model reads all of it as a user's turn.
VDG (docs/PAPERS.md#delta-generator) is the same network without q_c, its slots named.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedTokenizerBase

from cirray.generators.attached import head_reads, tuned
from cirray.generators.config import GeneratorConfig
from cirray.generators.prompts import prompt
from cirray.generators.trainable import AnswerLoss, Answers, TrainableGenerator
from cirray.models.batch import TextBatch
from cirray.models.qformer import QueryingTransformer
from cirray.models.text import build_tokenizer, encode_texts
from cirray.models.towers.language import LanguageModel

_REFERENCE, _TARGET = 0, 1


class ModificationTextModel(TrainableGenerator):
    """The network: soft tokens of an image pair in, loss of an answer (or the decoder's prefix) out.

    Attributes:
        qformer: one module for every pass. projection: one linear layer for every pass.
        language: the language model; its weights are frozen unless the configuration says otherwise.
        role_tags_RD: learned reference and target embeddings of the difference pass, or None.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        language: LanguageModel,
        patch_width: int,
        reader: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """Build with random weights from the global torch generator.

        Args:
            config: sizes and layout.
            language: the pretrained language model.
            patch_width: width of the frozen vision tokens.
            reader: tokenizer of the Q-Former's text side; default is a word-level one over the instruction.
        """
        super().__init__()
        self.config, self.language, self.prompt_version = config, language, config.prompt_version
        self.instruction = config.instruction
        self.reader = reader or build_tokenizer([self.instruction])
        vocabulary = len(self.reader) if "difference" in config.passes else 0
        self.qformer = QueryingTransformer(config.qformer, patch_width, vocabulary)
        self.opening = prompt(config.opening) if config.opening else ""
        self.frame = language.frame(config.frame)
        self.projection = nn.Linear(config.qformer.width, language.width, bias=config.projection_bias)
        self.role_tags_RD = nn.Parameter(torch.zeros(2, patch_width)) if config.role_tags else None
        self.lm = tuned(language, config)
        self.enter("answers")

    def enter(self, stage: Literal["alignment", "answers"]) -> None:
        """Make only what a stage trains trainable (VDG: projection, then projection and adapters)."""
        self.qformer.requires_grad_(self.config.reader_tuning in ("always", stage))
        if self.config.tuning == "lora":
            adapted = stage == "answers" or self.config.lora.in_alignment
            for name, weight in self.lm.named_parameters():
                weight.requires_grad_(adapted and "lora_" in name)

    def train(self, mode: bool = True) -> "ModificationTextModel":
        """Training mode for trained parts; frozen ones stay in eval mode, without dropout."""
        super().train(mode)
        if self.config.tuning == "frozen":
            self.lm.eval()
        if not self.qformer.query_tokens.requires_grad:
            self.qformer.eval()
        return self

    def read_image(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Projected queries of one image each (q_r or q_t): `[B, Q, E]`, in the language model's input space."""
        return self.projection(self.qformer.image(patches_BPD))

    def read_pair(self, reference_BPD: torch.Tensor, target_BPD: torch.Tensor) -> torch.Tensor:
        """Projected queries of both images at once with the instruction (q_c): `[B, Q, E]`.

        Without role tags the value does not depend on the order of the images.
        """
        if self.role_tags_RD is not None:
            reference_BPD = reference_BPD + self.role_tags_RD[_REFERENCE].to(reference_BPD.dtype)
            target_BPD = target_BPD + self.role_tags_RD[_TARGET].to(target_BPD.dtype)
        both_BPD = torch.cat([reference_BPD, target_BPD], dim=1)
        return self.projection(self.qformer.image(both_BPD, self._question(both_BPD)))

    def prefix(
        self,
        reference_BQE: torch.Tensor | None,
        target_BQE: torch.Tensor | None,
        difference_BQE: torch.Tensor | None,
    ) -> torch.Tensor:
        """The language model's input before the answer: opening, query groups in order, instruction; in its frame.

        In a plain frame the tokenizer's start token precedes the first words: before the instruction (InstructBLIP,
        MTG) or before the opening (VDG).

        Args:
            reference_BQE: output of `read_image`; groups that the configuration leaves out may be None.
            target_BQE: output of `read_image`.
            difference_BQE: output of `read_pair`.

        Returns:
            embeddings_BLE. Every row has the same length, so nothing needs padding on the left.
        """
        groups = {"reference": reference_BQE, "target": target_BQE, "difference": difference_BQE}
        chosen = [(name, groups[name]) for name in self.config.passes]
        separators = self.config.separators or ("",) * len(chosen)
        parts: list[torch.Tensor] = []
        started = False
        for (_, tokens_BQE), separator in zip(chosen, separators, strict=True):
            if tokens_BQE is None:
                continue
            for text in (separator,) if parts else (self.opening, separator):
                parts += self._words(text, tokens_BQE, first=not started)
                started = started or bool(text)
            parts.append(tokens_BQE.to(self.lm.dtype))
        return self._framed(parts, self.instruction, started)

    def image_prefix(self, image_BQE: torch.Tensor, instruction: str) -> torch.Tensor:
        """One image's soft tokens and an instruction, for alignment with captions: `[B, L, E]`."""
        return self._framed([image_BQE.to(self.lm.dtype)], instruction)

    def pair_prefix(self, reference_BPD: torch.Tensor, target_BPD: torch.Tensor) -> torch.Tensor:
        """All passes the configuration asks for, then `prefix`: `[B, L, E]`."""
        passes, difference_BQE = self.config.passes, None
        both_BQE = self.read_image(torch.cat([reference_BPD, target_BPD]))
        reference_BQE, target_BQE = both_BQE.split(len(reference_BPD))
        if "difference" in passes:
            difference_BQE = self.read_pair(reference_BPD, target_BPD)
        return self.prefix(
            reference_BQE if "reference" in passes else None, target_BQE if "target" in passes else None, difference_BQE
        )

    def forward(self, reference_BPD: torch.Tensor, target_BPD: torch.Tensor, answers: Answers) -> AnswerLoss:
        """Answer loss of image pairs (the paper's L_gen before averaging)."""
        return self.answer_loss(self.pair_prefix(reference_BPD, target_BPD), answers)

    def answer_loss(self, prefix_BLE: torch.Tensor, answers: Answers) -> AnswerLoss:
        """Cross-entropy of the answers after a prefix; only answer text and end token count."""
        logits_NV, wanted_N = self._answer_logits(prefix_BLE, answers), answers.ids_BT.flatten()[answers.places]
        total = F.cross_entropy(logits_NV.float(), wanted_N, reduction="sum")
        return AnswerLoss(total, answers.mask_BT.sum())

    def encode_answers(self, texts: Sequence[str]) -> Answers:
        """Token ids of answers, cut on the right, always with their end token."""
        limit, end, pad = self.config.answer_length - 1, self.language.end_id, self.language.pad_id
        rows = [[*self.language.token_ids(text)[:limit], end] for text in texts]
        width = max(len(row) for row in rows)
        ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        mask_BT = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
        return Answers(ids_BT, mask_BT, mask_BT.flatten().nonzero()[:, 0])

    def told(self) -> dict[str, Any]:
        """The instruction, and the frame that it stands in."""
        return {"instruction": self.instruction, "frame": self.frame.told(self.language.tokenizer)}

    def own_state(self) -> dict[str, torch.Tensor]:
        """Weights of everything but the language model."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("lm.")}

    def tuned_state(self) -> dict[str, torch.Tensor]:
        """Weights that some stage trains: the network's own, and adapters or the language model if tuned."""
        full, lora = self.config.tuning == "full", self.config.tuning == "lora"
        return {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith("lm.") or full or (lora and "lora_" in name)
        }

    def _answer_logits(self, prefix_BLE: torch.Tensor, answers: Answers) -> torch.Tensor:
        """Logits of every answer token, none of padding, `[N, V]`: after the prefix, or in an encoder's decoder."""
        ids_BT, length = answers.ids_BT, answers.ids_BT.shape[1]
        with head_reads(self.lm, answers.places):
            if self.language.encodes:
                start_B1 = torch.full_like(ids_BT[:, :1], self.lm.config.decoder_start_token_id)
                shifted_BT = torch.cat([start_B1, ids_BT[:, : length - 1]], dim=1)
                found = self.lm(inputs_embeds=prefix_BLE, decoder_input_ids=shifted_BT, use_cache=False)
            else:
                words_BTE = self.lm.get_input_embeddings()(ids_BT[:, : length - 1])
                inputs_BLE = torch.cat([prefix_BLE, words_BTE.to(prefix_BLE.dtype)], dim=1)
                found = self.lm(inputs_embeds=inputs_BLE, logits_to_keep=length, use_cache=False)
        return found.logits[0]

    def _question(self, like_BPD: torch.Tensor) -> TextBatch:
        text = encode_texts(self.reader, [self.instruction], self.config.instruction_length).to(like_BPD.device)
        rows = len(like_BPD)
        return TextBatch(text.ids_BT.expand(rows, -1), text.mask_BT.expand(rows, -1))

    def _framed(self, parts: Sequence[torch.Tensor], instruction: str, started: bool = False) -> torch.Tensor:
        """Head, given parts, instruction, tail: `[B, L, E]`. T5's encoder reads an end token behind the instruction."""
        like_BQE, frame = parts[-1], self.frame
        asked = self._words(instruction, like_BQE, first=not started)
        end = (self.language.end_id,) if self.language.encodes else ()
        tail = self._ids((*frame.tail, *end), like_BQE)
        return torch.cat([*self._ids(frame.head, like_BQE), *parts, *asked, *tail], dim=1)

    def _words(self, text: str, like_BQE: torch.Tensor, first: bool = False) -> list[torch.Tensor]:
        """Embeddings of a text, cut on the left; the first behind the frame's start."""
        start = self.frame.start if first and text else ()
        ids = self.language.token_ids(text)[-max(1, self.config.instruction_length - len(start)) :] if text else []
        return self._ids((*start, *ids), like_BQE)

    def _ids(self, ids: Sequence[int], like_BQE: torch.Tensor) -> list[torch.Tensor]:
        """Embeddings of ids for every row, or nothing."""
        if not ids:
            return []
        table = self.lm.get_input_embeddings()
        return [table(torch.tensor(ids, device=like_BQE.device)).expand(len(like_BQE), -1, -1)]
