"""Roots of the configuration tree that no single package owns. No torch, no ray."""

from typing import Any, Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.data.config import DataConfig, ShapesConfig
from cirray.models.config import RetrieverConfig


class WorldRun(Config):
    """Write the embedded world."""

    shapes: ShapesConfig = ShapesConfig()
    out: str = "~/cirray/quickstart/world"
    """Where the folder layout is written (path or URI)."""


class CheckRun(Config):
    """Keep the generated triplets whose target a base retriever finds by the text (round trip)."""

    triplets: str = "~/cirray/quickstart/synthetic"
    """Triplets artifact to check."""
    checkpoint: str = "~/cirray/quickstart/labelled_equal"
    """The base retriever: a checkpoint that was not trained on these triplets, e.g. on labelled ones alone."""
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts, made by the checkpoint's vision tower, that hold the triplets' images."""
    top_k: int = Field(20, ge=1)
    """A triplet stays when its target is among the first so many of all their images, its own reference removed."""
    both: bool = True
    """Its reverse twin must stay too, where it has one: texts of one pair are right or wrong together."""
    batch: int = Field(256, ge=1)
    """Images and queries per forward pass."""
    judge: str = ""
    """Root of a shapes world whose scenes judge the kept texts; the shares of right ones become metrics."""
    device: str = "cpu"
    """Where the model runs."""
    out: str = "~/cirray/quickstart/checked"
    """Triplets artifact (path or URI); what did not pass is in its rejected rows, with the rank."""

    @model_validator(mode="after")
    def _named(self) -> "CheckRun":
        if not self.features:
            raise ValueError("features needs at least one artifact")
        return self


class OracleRun(Config):
    """Replace generated texts by the true ones of the embedded world (the table's upper bound)."""

    triplets: str = "~/cirray/quickstart/synthetic"
    """Generated triplets whose pairs are used."""
    world: str = "~/cirray/quickstart/world"
    """World artifact with the scenes."""
    seed: int = 0
    """Which paraphrase is drawn."""
    out: str = "~/cirray/quickstart/oracle"
    """Triplets artifact (path or URI)."""


class CompareRun(Config):
    """Score several checkpoints on the same queries and write one report."""

    data: DataConfig = DataConfig()
    """Data set whose queries and gallery are used."""
    checkpoints: dict[str, str] = {}
    """Row name -> checkpoint artifact, in the order of the table."""
    features: tuple[str, ...] = ("~/cirray/quickstart/features",)
    """Features artifacts of every reference and gallery image."""
    labels: dict[str, int] = {}
    """Row name -> labelled triplets that the row has seen."""
    triplets: tuple[str, ...] = ()
    """Generated triplets of which samples are shown."""
    samples: int = 12
    """Generated texts shown."""
    judge: str = ""
    """Root of a shapes world that judges the samples."""
    title: str = "composed image retrieval"
    """Heading of the page."""
    seed: int = 0
    """Of the queries and samples drawn for the page."""
    out: str = "~/cirray/quickstart/report"
    """Report artifact (path or URI)."""


class SearchRun(Config):
    """Answer one composed query."""

    checkpoint: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact."""
    index: str = "~/cirray/quickstart/index"
    """Index artifact built with it."""
    image: str = ""
    """A picture file as the reference."""
    id: str = ""
    """Or the id of a gallery image."""
    text: str
    """What to change."""
    k: int = Field(10, ge=1)
    """Answers wanted."""
    out: str = ""
    """Where the page with the pictures goes; default `cirray-search.html` here."""


class ConvertRun(Config):
    """Read the authors' checkpoint files, or write them again."""

    source: str
    """A file of LAVIS, SPRC or MTST_PTHA (`.pth`, `.pt`, `.bin`, `.safetensors`), a folder that this verb made of one,
    or (`to: original`) a checkpoint artifact."""
    to: Literal["weights", "checkpoint", "original"] = "weights"
    """`weights`: a folder in Hugging Face layout, for `qformer_source` and `vision`. `checkpoint`: a checkpoint
    artifact, to evaluate, index and serve. `original`: the authors' layout, `weights.pt`."""
    format: Literal["auto", "blip2", "sprc", "ptha", "instructblip-vicuna", "instructblip-t5"] = "auto"
    """What the file is; `auto` tells it by its tensors."""
    tokenizer: str = ""
    """Folder or hub id of the Q-Former's tokenizer (bert-base-uncased); [DEC] is added where LAVIS adds it."""
    vision: str = ""
    """With `to: checkpoint`: the vision tower of a file that holds none (towers artifact, folder or hub id)."""
    qformer_heads: int = Field(12, ge=1)
    """Attention heads of the Q-Former, which the file does not tell."""
    vision_heads: int = Field(16, ge=1)
    """Attention heads of the vision tower, which the file does not tell."""
    model: RetrieverConfig | None = None
    """With `to: checkpoint`: readout, mask, temperature; null: as the authors' code infers ([CLS])."""
    image_mode: Literal["", "target_pad", "squash", "center_crop"] = "target_pad"
    """With `to: checkpoint`: how images become square (SPRC and PTHA: `target_pad`)."""
    out: str = "~/cirray/quickstart/converted"
    """Artifact to write (path or URI)."""


class ExportRun(Config):
    """Write a model as one folder in Hugging Face style, with a card; `cirray.load(folder)` reads it."""

    model: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint or generator artifact."""
    reports: tuple[str, ...] = ()
    """Report artifacts whose figures go into the card."""
    name: str = "composed image retriever"
    """Heading of the card."""
    license: str = "other"
    """License of the weights, as the card's metadata name it; weights made from others' keep theirs."""
    notes: str = ""
    """A paragraph for the card."""
    out: str = "~/cirray/quickstart/export"
    """Folder to write (path or URI)."""


class ServeRun(Config):
    """Serve a retriever over HTTP on this machine or on the cluster that `RAY_ADDRESS` names."""

    checkpoint: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact."""
    index: str = "~/cirray/quickstart/index"
    """Index artifact built with it."""
    host: str = "127.0.0.1"
    """Interface; 0.0.0.0 opens the service to the network."""
    port: int = Field(8000, ge=1, le=65535)
    """Port."""
    device: str = "cpu"
    """Where the models run."""


class StoryRun(Config):
    """The whole story on the embedded world: every stage below one root, every row of the results table."""

    root: str = "~/cirray/quickstart"
    """Folder of all artifacts; run again with the same root to go on where a killed run stopped."""
    seed: int = Field(0, ge=0)
    """Everything drawn, trained or shown follows from it: world, start weights, order of the rows."""
    labels: int | None = Field(None, ge=1)
    """Use only the first so many labelled triplets (whole families); null: all."""
    stages: dict[str, Any] = {}
    """Fields of single stages over the story's own, by stage name: `stages.pretrain.training.steps=200`."""
    rows: tuple[str, ...] = (
        "text only", "labelled only (equal compute)", "MTST only", "oracle texts + fine-tuning", "MTST + PTHA",
        "MTST + fine-tuning",
    )  # fmt: skip
    """Rows of the table to make, by name, and what they build on; empty: all (the saturated baseline too)."""
    generators: tuple[str, ...] = ()
    """Further generators to train for the accuracy lines: LoRA, tuned, three passes, three passes tuned."""
    slots: int = Field(2, ge=1)
    """Cores to keep busy."""
    ray: bool = True
    """Run the stages as Ray tasks side by side; false: one after another in this process, without Ray anywhere."""
