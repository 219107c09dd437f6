"""Configuration of `convert` and `export`. No torch, no ray."""

from typing import Literal

from pydantic import Field, field_serializer, model_validator

from cirray.core.config import given_beside
from cirray.core.fields import Effort, Place
from cirray.core.places import Run
from cirray.models.config import Encoder


class ConvertRun(Run):
    """Read the authors' checkpoint files, or write them again."""

    source: Place
    """What is read: a checkpoint file, a folder made of one, or an artifact (`to: original`). Files (`.pth`, `.pt`,
    `.bin`, `.safetensors`) may be those of LAVIS, SPRC, MTST_PTHA, CLIP4Cir, SPN4CIR, SEARLE, LinCIR or Pic2Word."""
    to: Literal["weights", "checkpoint", "original"] = "weights"
    """What is written. `weights`: a folder for `qformer_source` and `vision` (Hugging Face's layout), or of a CLIP for
    `vision` and the `source` of a dual encoder (open_clip's). `checkpoint`: a checkpoint, to evaluate, index and serve.
    `original`: the authors' layout: `weights.pt`, of a dual encoder `clip.pt` and `combiner.pt`, of a map to
    pseudo-words `phi.pt`."""
    format: Literal[
        "auto",
        "blip2",
        "sprc",
        "ptha",
        "spn",
        "instructblip-vicuna",
        "instructblip-t5",
        "clip4cir",
        "searle",
        "lincir",
        "pic2word",
    ] = "auto"
    """What the file is; `auto` tells it by its tensors. spn: SPRC after SPN's second stage; clip4cir: a tuned CLIP in
    OpenAI's layout, or a Combiner; searle, lincir, pic2word: a map from images to pseudo-words."""
    clip: Place = ""
    """The CLIP of a Combiner or a map whose file holds none, with `to: checkpoint`. CLIP4Cir's tuned .pt, a folder of
    Hugging Face or open_clip, a hub id, `open_clip:NAME=FILE`, or a towers artifact."""
    tokenizer: Place = ""
    """Folder or hub id of the Q-Former's tokenizer (bert-base-uncased). [DEC] is added where LAVIS adds it."""
    vision: Place = ""
    """The vision tower of a file that holds none, with `to: checkpoint`. Towers artifact, folder or hub id."""
    qformer_heads: int = Field(12, ge=1)
    """Attention heads of the Q-Former, which the file does not tell."""
    vision_heads: int = Field(16, ge=1)
    """Attention heads of the vision tower, which the file does not tell."""
    encoder: Encoder | None = None
    """The network, with `to: checkpoint` and a file of LAVIS' kind: readout, mask, text processor, temperature. The
    default is the authors' code, which reads captions as LAVIS does and infers from [CLS]."""
    image_mode: Literal["", "target_pad", "squash", "center_crop"] = ""
    """How images become square, with `to: checkpoint`; empty: as in the authors' code. LinCIR and Pic2Word:
    `center_crop`, all others: `target_pad`."""
    out: Place = "@converted"
    """Artifact to write (path or URI)."""

    _said = field_serializer("encoder", mode="wrap")(given_beside())

    @model_validator(mode="after")
    def _used(self) -> "ConvertRun":
        for name, value in (("encoder", self.encoder), ("vision", self.vision), ("clip", self.clip)):
            if value and self.to != "checkpoint":
                raise ValueError(f"{name} has no effect with to={self.to}; leave it out, or set to=checkpoint")
        return self


class ExportRun(Run):
    """Write a model as one folder in Hugging Face style, with a card; `cirray.load(folder)` reads it."""

    model: Place = "@checkpoint"
    """Checkpoint or generator artifact."""
    reports: tuple[Place, ...] = ()
    """Report artifacts whose figures go into the card."""
    name: str = "composed image retriever"
    """Heading of the card."""
    license: str = "other"
    """License of the weights, as the card's metadata name it. Weights made from others' keep theirs."""
    notes: str = ""
    """A paragraph for the card."""
    base_models: tuple[str, ...] = ()
    """Hub ids of the weights that it was made from; empty: that of `cirray index --model`, if it was a hub id."""
    datasets: tuple[str, ...] = ()
    """Names or hub ids of the data that it was trained on, for the card."""
    push: Effort[str] = ""
    """Hub id, OWNER/NAME, that the folder is uploaded to; empty: none. An export that is finished is uploaded too."""
    private: Effort[bool] = True
    """Whether a repository that `push` makes is yours alone to see."""
    out: Place = "@export"
    """Folder to write (path or URI)."""
