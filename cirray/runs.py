"""Roots of the configuration tree that no single package owns. No torch, no ray."""

from typing import Any, Literal

from pydantic import Field, field_serializer, model_validator

from cirray.core.config import Config, given_beside
from cirray.data.config import DataConfig, ShapesConfig
from cirray.models.config import DualEncoderConfig, RetrieverConfig
from cirray.pipelines.config import RayConfig


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
    tests: tuple[Literal["rank", "outrank", "direction"], ...] = ("rank",)
    """What a triplet must pass. rank: its target is found. outrank: its target beats its own reference. direction:
    its text leads rather from reference to target than back."""
    top_k: int = Field(20, ge=1)
    """`rank`: a triplet stays when its target is among the first so many of all their images, own reference removed."""
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
        if not self.tests:
            raise ValueError("tests is empty; name at least one of rank, outrank, direction")
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
    row_features: dict[str, tuple[str, ...]] = {}
    """Row name -> features artifacts of its own tower, where they are not `features`."""
    row_texts: dict[str, str] = {}
    """Row name -> rewrites artifact whose texts its queries say instead of their own (training-free retrieval)."""
    duals: dict[str, DualEncoderConfig] = {}
    """Row name -> a dual encoder that is not trained (image + text arithmetic); its tower's features in
    `row_features`."""
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


class ScoreRun(Config):
    """The figures of saved vectors, ranked lists or a submission file; no model is needed."""

    data: DataConfig = DataConfig()
    """Benchmark whose queries, galleries and protocol are used; its images are not read."""
    queries: str = ""
    """Vectors of the queries: .npy, .npz or .safetensors of [N, D], ids in NAME.ids.json or ids.json beside it."""
    query_ids: str = ""
    """JSON list of the query ids, where it lies elsewhere."""
    gallery: tuple[str, ...] = ()
    """Vectors of the gallery: one file or several (shards), [N, D] or [N, tokens, D], with ids like the queries'."""
    gallery_ids: tuple[str, ...] = ()
    """JSON lists of their ids, one a file, where they lie elsewhere."""
    ranks: str = ""
    """Or ranked lists: a report, a Parquet file, a JSON object query id -> image ids, or a submission file."""
    subsets: str = ""
    """JSON of the subsets' ranked ids (CIRR's recall_subset file), where `ranks` does not hold them."""
    row: str = ""
    """Which model of a report's rankings; empty: the last."""
    seed: int | None = None
    """Which seed of that model; null: its first."""
    name: str = "scored"
    """What the table calls it."""
    reference_rule: Literal["", "remove", "keep"] = ""
    """Over the benchmark's own rule."""
    normalize: bool = True
    """Bring vectors to unit length first: protocols score cosines."""
    top_k: int = Field(50, ge=1)
    """Length of the ranked lists that are kept."""
    sums: Literal["float64", "float32"] = "float64"
    """Precision in which products are added up; scores are float32. float64 gives the same integers on any machine."""
    device: str = "cpu"
    """Where vectors are compared."""
    budget_mb: int = Field(256, ge=1)
    """MiB of one block of scores."""
    parts: int = Field(1, ge=1)
    """Pieces that every gallery file is cut into."""
    intervals: bool = False
    """Give every figure its 95 % bootstrap interval."""
    out: str = ""
    """Report artifact with metrics.json and rankings.parquet; empty writes nothing."""
    ray: RayConfig = RayConfig()
    """Cluster that works on several files or parts side by side (one part needs none); its nodes must see the files."""

    @model_validator(mode="after")
    def _one_way_in(self) -> "ScoreRun":
        vectors, lists = bool(self.queries or self.gallery), bool(self.ranks or self.subsets)
        if vectors == lists:
            given = "both" if vectors else "neither"
            raise ValueError(f"give vectors (queries=FILE gallery=FILE) or lists (ranks=FILE); {given} was given")
        if vectors and not (self.queries and self.gallery):
            raise ValueError("vectors are needed of both sides: queries=FILE and gallery=FILE (or gallery=[FILE,FILE])")
        if self.gallery_ids and len(self.gallery_ids) != len(self.gallery):
            raise ValueError(f"gallery_ids names {len(self.gallery_ids)} files for {len(self.gallery)} of vectors")
        return self


class BrowseRun(Config):
    """Write a page that shows a saved evaluation query by query, alone or beside another one."""

    data: DataConfig = DataConfig()
    """Benchmark of the rankings: texts, targets and images (missing ones become placeholders)."""
    run: str = "~/cirray/quickstart/report"
    """Rankings: a report, a Parquet or a JSON file."""
    row: str = ""
    """Which model of a report; empty: the last."""
    seed: int | None = None
    """Which seed of that model; null: its first."""
    name: str = ""
    """What the page calls it; empty: its row."""
    other: str = ""
    """Second rankings to compare with: it wins or loses queries against `run`."""
    other_row: str = ""
    """Which model of the second; empty: `row`."""
    other_seed: int | None = None
    """Which seed of the second; null: its first."""
    other_name: str = ""
    """What the page calls it."""
    pictured: int = Field(100, ge=0, le=5000)
    """Queries with embedded pictures: the worst and the best, or the most lost and most won."""
    listed: int = Field(10_000, ge=1)
    """Queries on the page."""
    strip: int = Field(10, ge=1, le=50)
    """Answers shown of each query."""
    side: int = Field(128, ge=16, le=512)
    """Longest side of a thumbnail in pixels."""
    title: str = ""
    """Heading; empty: the runs' names and the data set's."""
    out: str = "cirray-browse.html"
    """The page (path or URI)."""


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
    """A file (`.pth`, `.pt`, `.bin`, `.safetensors`) of LAVIS, SPRC, MTST_PTHA, CLIP4Cir, SPN4CIR, SEARLE, LinCIR or
    Pic2Word, a folder that this verb made of one, or (`to: original`) a checkpoint artifact."""
    to: Literal["weights", "checkpoint", "original"] = "weights"
    """`weights`: a folder for `qformer_source` and `vision` (Hugging Face's layout), or of a CLIP for `vision` and
    `dual.source` (open_clip's). `checkpoint`: a checkpoint artifact, to evaluate, index and serve. `original`: the
    authors' layout: `weights.pt`, of a dual encoder `clip.pt` and `combiner.pt`, of a map to pseudo-words `phi.pt`."""
    format: Literal[
        "auto",
        "blip2",
        "sprc",
        "ptha",
        "instructblip-vicuna",
        "instructblip-t5",
        "clip4cir",
        "searle",
        "lincir",
        "pic2word",
    ] = "auto"
    """What the file is; `auto` tells it by its tensors. clip4cir: a tuned CLIP in OpenAI's layout, or a Combiner;
    searle, lincir, pic2word: a map from images to pseudo-words."""
    clip: str = ""
    """With `to: checkpoint`: the CLIP under a Combiner or a map whose file holds none (CLIP4Cir's tuned .pt, a folder
    of Hugging Face or open_clip, a hub id, `open_clip:NAME=FILE`, a towers artifact)."""
    tokenizer: str = ""
    """Folder or hub id of the Q-Former's tokenizer (bert-base-uncased); [DEC] is added where LAVIS adds it."""
    vision: str = ""
    """With `to: checkpoint`: the vision tower of a file that holds none (towers artifact, folder or hub id)."""
    qformer_heads: int = Field(12, ge=1)
    """Attention heads of the Q-Former, which the file does not tell."""
    vision_heads: int = Field(16, ge=1)
    """Attention heads of the vision tower, which the file does not tell."""
    model: RetrieverConfig | None = None
    """With `to: checkpoint`: readout, mask, text processor, temperature over those of the authors' code, which reads
    captions as LAVIS does and infers from [CLS]."""
    image_mode: Literal["", "target_pad", "squash", "center_crop"] = ""
    """With `to: checkpoint`: how images become square; empty: as the authors' code does it (LinCIR, Pic2Word:
    `center_crop`; all others: `target_pad`)."""
    out: str = "~/cirray/quickstart/converted"
    """Artifact to write (path or URI)."""

    _said = field_serializer("model", mode="wrap")(given_beside())

    @model_validator(mode="after")
    def _used(self) -> "ConvertRun":
        for name, value in (("model", self.model), ("vision", self.vision), ("clip", self.clip)):
            if value and self.to != "checkpoint":
                raise ValueError(f"{name} has no effect with to={self.to}; leave it out, or set to=checkpoint")
        return self


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
    allowed_hosts: tuple[str, ...] | None = None
    """Names a Host header may say, for a service behind another name; null: loopback's where host is loopback."""
    replicas: int = Field(1, ge=1)
    """Processes that answer; the next request goes to the one with the least to do."""
    fast: bool = False
    """Serve's fast path (HAProxy, Linux): about twice the requests a second."""
    file: str = ""
    """Take everything but `fast` from a Serve config file, e.g. serve_configs/retriever.yaml; empty: these fields."""


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
