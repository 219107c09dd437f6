"""Names of tensors in LAVIS, SPRC and MTST_PTHA and in transformers, converted both ways. Pure.

One table of entries says which original name is which of ours and what shape it has; it follows from the sizes, which
are read off the shapes. Sources of the names: LAVIS (`eva_vit.py`, `Qformer.py`, `blip2_qformer.py`,
`blip2_vicuna_instruct.py`), SPRC (`blip2_qformer_cir_align_prompt.py`), MTST_PTHA
(`blip2_qformer_tgir_concatembedding_sim.py`).

EVA's attention keeps a query and a value bias and no key bias (`q_bias`, `v_bias`); transformers fuses them with zeros
in the middle. The word head (`Qformer.cls`), which no retriever uses, is kept under `lm_head`, so that conversion back
is complete.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from cirray.core.errors import ArtifactError, unknown_name

Tensors = Mapping[str, torch.Tensor]
Shape = tuple[int, ...] | None

IGNORED = (r"Qformer\.bert\.embeddings\.position_ids", r".*\.rotary_emb\.inv_freq", r".*\.relative_position_index")
"""Buffers that follow from the sizes. Only `position_ids` is written when converting back."""
POSITION_IDS = "Qformer.bert.embeddings.position_ids"
TOWER, WORD_HEAD, SPEAKER = "visual_encoder.", "Qformer.cls.", "llm_model."


@dataclass(frozen=True)
class Format:
    """A format: `marks` are tensors that only it has, `heads` those beside tower and Q-Former."""

    instruct: bool
    marks: tuple[str, ...]
    heads: tuple[str, ...]
    projection: str = ""


FORMATS = {
    "blip2": Format(False, ("vision_proj.weight", "itm_head.weight"), ("vision_proj", "text_proj", "itm_head", "temp")),
    "sprc": Format(
        False, ("vision_proj.weight", "prompt_tokens", "itm_head.weight"),
        ("vision_proj", "text_proj", "itm_head", "temp", "prompt_tokens"),
    ),
    "ptha": Format(
        False, ("vision_proj.weight", "prompt_tokens"), ("vision_proj", "text_proj", "temp", "prompt_tokens")
    ),
    "instructblip-vicuna": Format(True, ("llm_proj.weight",), ("llm_proj",), "llm_proj"),
    "instructblip-t5": Format(True, ("t5_proj.weight",), ("t5_proj",), "t5_proj"),
}  # fmt: skip
_OURS = {"vision_proj": "vision_projection", "text_proj": "text_projection", "temp": "temperature"}


class Entry(NamedTuple):
    """One tensor: its original name, ours, and its shape (None: not checked)."""

    original: str
    ours: str
    shape: Shape


@dataclass(frozen=True)
class Sizes:
    """Sizes read from shapes. `tower_layers` is 0 for a file without the frozen tower."""

    width: int
    layers: int
    intermediate: int
    frequency: int
    queries: int
    vocabulary: int
    positions: int
    patch_width: int
    projected: int
    tower_layers: int = 0
    tower_intermediate: int = 0
    patch: int = 0
    places: int = 0

    @property
    def image_size(self) -> int:
        """Side of the images in pixels that the position table is for."""
        return math.isqrt(self.places - 1) * self.patch


def find_format(names: Iterable[str], wanted: str = "auto") -> str:
    """The format with most of its marks in a file.

    Raises ArtifactError when it has none, or not those of the wanted format.
    """
    present = set(names)
    fitting = [name for name, form in FORMATS.items() if present.issuperset(form.marks)]
    if wanted != "auto":
        if wanted not in FORMATS:
            raise ArtifactError(unknown_name("checkpoint format", wanted, FORMATS))
        fitting = [name for name in fitting if name == wanted]
    if not fitting or not any(name.startswith("Qformer.bert.") for name in present):
        marks = "; ".join(f"{name}: {', '.join(form.marks)}" for name, form in FORMATS.items())
        raise ArtifactError(
            f"The checkpoint is of the wrong architecture: its tensors ({_some(present)}) are not those of "
            f"{'any known format' if wanted == 'auto' else wanted}. It is recognised by Qformer.bert.* and {marks}."
        )
    return max(fitting, key=lambda name: len(FORMATS[name].marks))


def original_sizes(state: Tensors, form: str) -> Sizes:
    """Sizes of an original state dict.

    Raises ArtifactError when a tensor for a size is missing, or the position table is not of a square image.
    """
    layer = "Qformer.bert.encoder.layer."
    crossed = sorted(_numbers(state, rf"{re.escape(layer)}(\d+)\.crossattention\.self\.key\.weight"))
    layers = len(_numbers(state, rf"{re.escape(layer)}(\d+)\.attention\.self\.key\.weight"))
    queries, width = _shape(state, "query_tokens", 3)[1:]
    words = _shape(state, "Qformer.bert.embeddings.word_embeddings.weight", 2)
    projection = FORMATS[form].projection or "vision_proj"
    tower = any(name.startswith(TOWER) for name in state)
    sizes = Sizes(
        width=width, layers=layers, queries=queries, vocabulary=words[0],
        intermediate=_shape(state, f"{layer}0.intermediate_query.dense.weight", 2)[0],
        frequency=crossed[1] - crossed[0] if len(crossed) > 1 else max(layers, 1),
        positions=_shape(state, "Qformer.bert.embeddings.position_embeddings.weight", 2)[0],
        patch_width=_shape(state, "ln_vision.weight", 1)[0], projected=_shape(state, f"{projection}.weight", 2)[0],
        **(_tower_sizes(state) if tower else {}),
    )  # fmt: skip
    if tower and math.isqrt(sizes.places - 1) ** 2 != sizes.places - 1:
        raise ArtifactError(
            f"The position table of the checkpoint has {sizes.places} places, which is no class token and a square of "
            "patches; image sizes that are not square, or were cut, cannot be converted."
        )
    return sizes


def entries(form: str, sizes: Sizes, tower: bool, word_head: bool) -> list[Entry]:
    """Every tensor of a format at given sizes, without those that are fused (see `fused_entries`)."""
    table = [*_qformer(form, sizes), *_heads(form, sizes)]
    if tower:
        table += _tower(sizes)
    if word_head:
        table += _word_head(sizes)
    return table


def fused_entries(sizes: Sizes) -> list[tuple[str, str, str]]:
    """(query bias, value bias, ours) of every layer of the tower."""
    return [
        (f"{TOWER}blocks.{at}.attn.q_bias", f"{TOWER}blocks.{at}.attn.v_bias",
         f"vision_model.encoder.layers.{at}.self_attn.qkv.bias")
        for at in range(sizes.tower_layers)
    ]  # fmt: skip


def to_ours(state: Tensors, form: str, sizes: Sizes) -> dict[str, torch.Tensor]:
    """An original state dict under transformers' names; values and types are kept.

    Raises ArtifactError: listing tensors that are missing, left over, or of another shape than the sizes say.
    """
    table = entries(form, sizes, sizes.tower_layers > 0, any(name.startswith(WORD_HEAD) for name in state))
    fused = fused_entries(sizes)
    speaker = {name for name in state if name.startswith(SPEAKER) and not ignored(name)}
    expected = {entry.original for entry in table} | {name for row in fused for name in row[:2]} | speaker
    check_names({name for name in state if not ignored(name)}, expected, form)
    _check_position_ids(state)
    width = sizes.patch_width
    biases = [Entry(name, "", (width,)) for row in fused for name in row[:2]]
    _check_shapes(state, [(entry.original, entry.shape) for entry in (*table, *biases)])
    ours = {entry.ours: state[entry.original] for entry in table}
    ours |= {name: _fuse(state[query], state[value]) for query, value, name in fused}
    return ours | {name.replace(SPEAKER, "language_model.", 1): state[name] for name in speaker}


def to_original(ours: Tensors, form: str, sizes: Sizes, position_ids: bool = False) -> dict[str, torch.Tensor]:
    """The inverse: `to_original(to_ours(state))` is `state` bit for bit, except ignored buffers.

    Raises ArtifactError as `to_ours`, or for a key bias that is not zero, which the original does not have.
    """
    tower = any(name.startswith("vision_model.encoder.") for name in ours)
    table = entries(form, sizes, tower, any(name.startswith("lm_head.") for name in ours))
    fused = fused_entries(sizes) if tower else []
    speaker = {name for name in ours if name.startswith("language_model.")}
    check_names(set(ours), {entry.ours for entry in table} | {row[2] for row in fused} | speaker, form)
    _check_shapes(ours, [(entry.ours, entry.shape) for entry in table])
    state = {entry.original: ours[entry.ours] for entry in table}
    for query, value, name in fused:
        state[query], state[value] = _split(ours[name], name)
    state |= {name.replace("language_model.", SPEAKER, 1): ours[name] for name in speaker}
    return state | ({POSITION_IDS: torch.arange(sizes.positions)[None]} if position_ids else {})


def ignored(name: str) -> bool:
    """Whether a tensor is one of the buffers that follow from the sizes (`IGNORED`)."""
    return any(re.fullmatch(pattern, name) for pattern in IGNORED)


def check_names(found: set[str], expected: set[str], form: str) -> None:
    """Refuse a state dict with anything missing or left over. Raises ArtifactError: listing both."""
    missing, left = expected - found, found - expected
    if missing or left:
        parts = [f"{len(missing)} missing: {_some(missing)}"] if missing else []
        parts += [f"{len(left)} left over: {_some(left)}"] if left else []
        raise ArtifactError(
            f"The checkpoint is no {form} checkpoint as published ({'; '.join(parts)}). Nothing was converted; give "
            "the unchanged file, or name its format."
        )


def _qformer(form: str, sizes: Sizes) -> list[Entry]:
    width, inner, patch = sizes.width, sizes.intermediate, sizes.patch_width
    words, norm = ("qformer.embeddings", "qformer.embeddings.layernorm") if FORMATS[form].instruct else (
        "embeddings", "qformer.layernorm"
    )  # fmt: skip
    bert = "Qformer.bert.embeddings"
    table = [
        Entry("query_tokens", "query_tokens", (1, sizes.queries, width)),
        Entry(f"{bert}.word_embeddings.weight", f"{words}.word_embeddings.weight", (sizes.vocabulary, width)),
        Entry(f"{bert}.position_embeddings.weight", f"{words}.position_embeddings.weight", (sizes.positions, width)),
        *_affine(f"{bert}.LayerNorm", norm, (width,)),
        *_affine("ln_vision", "vision_model.post_layernorm", (patch,)),
    ]
    for at in range(sizes.layers):
        theirs, ours = f"Qformer.bert.encoder.layer.{at}", f"qformer.encoder.layer.{at}"
        kinds = {"attention": width} | ({"crossattention": patch} if at % sizes.frequency == 0 else {})
        for kind, keys in kinds.items():
            for part, reads in (("query", width), ("key", keys), ("value", keys)):
                table += _affine(f"{theirs}.{kind}.self.{part}", f"{ours}.{kind}.attention.{part}", (width, reads))
            table += _pair(f"{theirs}.{kind}.output", f"{ours}.{kind}.output", (width, width))
        for suffix in ("", "_query"):
            name = f"intermediate{suffix}.dense"
            table += _affine(f"{theirs}.{name}", f"{ours}.{name}", (inner, width))
            table += _pair(f"{theirs}.output{suffix}", f"{ours}.output{suffix}", (width, inner))
    return table


def _tower(sizes: Sizes) -> list[Entry]:
    width, inner = sizes.patch_width, sizes.tower_intermediate
    base = "vision_model.embeddings"
    table = [
        Entry(f"{TOWER}cls_token", f"{base}.class_embedding", (1, 1, width)),
        Entry(f"{TOWER}pos_embed", f"{base}.position_embedding", (1, sizes.places, width)),
        *_affine(f"{TOWER}patch_embed.proj", f"{base}.patch_embedding", (width, 3, sizes.patch, sizes.patch)),
    ]
    for at in range(sizes.tower_layers):
        theirs, ours = f"{TOWER}blocks.{at}", f"vision_model.encoder.layers.{at}"
        table += [Entry(f"{theirs}.attn.qkv.weight", f"{ours}.self_attn.qkv.weight", (3 * width, width))]
        table += _affine(f"{theirs}.attn.proj", f"{ours}.self_attn.projection", (width, width))
        table += _affine(f"{theirs}.norm1", f"{ours}.layer_norm1", (width,))
        table += _affine(f"{theirs}.norm2", f"{ours}.layer_norm2", (width,))
        table += _affine(f"{theirs}.mlp.fc1", f"{ours}.mlp.fc1", (inner, width))
        table += _affine(f"{theirs}.mlp.fc2", f"{ours}.mlp.fc2", (width, inner))
    return table


def _heads(form: str, sizes: Sizes) -> list[Entry]:
    table: list[Entry] = []
    for name in FORMATS[form].heads:
        ours = "language_projection" if name == FORMATS[form].projection else _OURS.get(name, name)
        if name == "temp":
            table.append(Entry(name, ours, ()))
        elif name == "prompt_tokens":
            table.append(Entry(name, ours, (1, sizes.queries, sizes.width)))
        else:
            table += _affine(name, ours, (2 if name == "itm_head" else sizes.projected, sizes.width))
    return table


def _word_head(sizes: Sizes) -> list[Entry]:
    """BERT's prediction head. Its bias keeps the length it had before [DEC] was added, so lengths are not checked."""
    theirs, ours, width = f"{WORD_HEAD}predictions", "lm_head.predictions", sizes.width
    names = ("bias", "decoder.weight", "decoder.bias")
    return [
        *(Entry(f"{theirs}.{name}", f"{ours}.{name}", None) for name in names),
        *_affine(f"{theirs}.transform.dense", f"{ours}.transform.dense", (width, width)),
        *_affine(f"{theirs}.transform.LayerNorm", f"{ours}.transform.LayerNorm", (width,)),
    ]


def _affine(theirs: str, ours: str, shape: tuple[int, ...]) -> list[Entry]:
    """Weight and bias of a linear layer, a convolution or a LayerNorm."""
    return [
        Entry(f"{theirs}.weight", f"{ours}.weight", shape), Entry(f"{theirs}.bias", f"{ours}.bias", shape[:1]),
    ]  # fmt: skip


def _pair(theirs: str, ours: str, shape: tuple[int, ...]) -> list[Entry]:
    """BERT's output block: a linear layer and the LayerNorm after it."""
    return [
        *_affine(f"{theirs}.dense", f"{ours}.dense", shape),
        *_affine(f"{theirs}.LayerNorm", f"{ours}.LayerNorm", shape[:1]),
    ]


def _fuse(query: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.cat([query, torch.zeros_like(query), value])


def _split(bias: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    query, key, value = bias.chunk(3)
    if key.any():
        raise ArtifactError(
            f"The key bias inside {name!r} is not zero; LAVIS' attention has no key bias, so this tower cannot be "
            "written in its format."
        )
    return query.clone(), value.clone()


def _tower_sizes(state: Tensors) -> dict[str, int]:
    return {
        "tower_layers": len(_numbers(state, rf"{re.escape(TOWER)}blocks\.(\d+)\.attn\.qkv\.weight")),
        "tower_intermediate": _shape(state, f"{TOWER}blocks.0.mlp.fc1.weight", 2)[0],
        "patch": _shape(state, f"{TOWER}patch_embed.proj.weight", 4)[2],
        "places": _shape(state, f"{TOWER}pos_embed", 3)[1],
    }


def _numbers(state: Tensors, pattern: str) -> set[int]:
    return {int(found.group(1)) for name in state if (found := re.fullmatch(pattern, name))}


def _shape(state: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise ArtifactError(f"The checkpoint lacks the tensor {name!r}; give the whole state dict.")
    if state[name].dim() != dimensions:
        raise ArtifactError(
            f"The tensor {name!r} of the checkpoint has shape {tuple(state[name].shape)}; {dimensions} dimensions are "
            "needed."
        )
    return tuple(state[name].shape)


def _check_shapes(tensors: Tensors, wanted: Iterable[tuple[str, Shape]]) -> None:
    for name, shape in wanted:
        if shape is not None and tuple(tensors[name].shape) != shape:
            raise ArtifactError(
                f"The tensor {name!r} of the checkpoint has shape {tuple(tensors[name].shape)}, its other tensors ask "
                f"for {shape}. Parts of different models cannot be converted together."
            )


def _check_position_ids(state: Tensors) -> None:
    ids = state.get(POSITION_IDS)
    if ids is not None and not torch.equal(ids.flatten(), torch.arange(ids.numel())):
        raise ArtifactError(
            f"The buffer {POSITION_IDS!r} does not count from 0; such a checkpoint cannot be converted."
        )


def _some(names: Iterable[str], shown: int = 6) -> str:
    every = sorted(names)
    return ", ".join(every[:shown]) + (f" and {len(every) - shown:,} more" if len(every) > shown else "")
