"""Configuration of scores, pages and reports. No torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cirray.core.fields import Effort, Features, Kind, Place
from cirray.core.places import Run
from cirray.data.config import DataConfig
from cirray.generators.rerankers.config import RerankChoice
from cirray.models.config import Encoder
from cirray.pipelines.cluster.config import RayConfig


class CompareRun(Run):
    """Score several checkpoints on the same queries and write one report."""

    data: DataConfig = DataConfig()
    """Data set whose queries and gallery are used."""
    checkpoints: dict[str, Annotated[Place, Kind("checkpoint")]] = {}
    """Row name -> checkpoint artifact, in the order of the table."""
    features: tuple[Features, ...] = ("@features",)
    """Features artifacts of every reference and gallery image."""
    row_features: dict[str, tuple[Features, ...]] = {}
    """Row name -> features artifacts of its own tower, where they are not `features`."""
    row_texts: dict[str, Annotated[Place, Kind("rewrites")]] = {}
    """Row name -> rewrites artifact whose texts its queries say instead of their own (training-free retrieval)."""
    row_rerank: dict[str, RerankChoice] = {}
    """Row name -> what scores the first answers of its queries again; the same checkpoint may be a row without, too."""
    encoders: dict[str, Encoder] = {}
    """Row name -> an encoder that is not trained (image + text arithmetic); its tower's features in `row_features`."""
    labels: dict[str, int] = {}
    """Row name -> labelled triplets that the row has seen."""
    triplets: tuple[Place, ...] = ()
    """Generated triplets of which samples are shown."""
    samples: int = 12
    """Generated texts shown."""
    judge: Place = ""
    """Root of a shapes world that judges the samples, and knows the scenes of `row_shapes`."""
    row_shapes: dict[str, Annotated[Place, Kind("index")]] = {}
    """Row name -> an index of `judge`'s pictures made with its checkpoint: what each shape of query does is measured,
    too (a text or a picture alone, several, what is not wanted, a box, ids left out)."""
    shape_queries: int = Field(200, ge=1)
    """Queries of each shape and seed."""
    shape_seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Seeds of what they ask."""
    title: str = "composed image retrieval"
    """Heading of the page."""
    seed: int = 0
    """Seed of the queries and samples drawn for the page."""
    out: Place = "@comparison"
    """Report artifact (path or URI)."""


class SavedRun(Run):
    """A run over what any program saved: vectors of queries and gallery, or ranked lists."""

    queries: Place = ""
    """File of the queries' vectors. A .npy, .npz or .safetensors of [N, D], ids in NAME.ids.json or ids.json beside
    it."""
    query_ids: Place = ""
    """JSON list of the query ids, where it lies elsewhere."""
    gallery: tuple[Place, ...] = ()
    """Files of the gallery's vectors (shards). Each is [N, D] or [N, tokens, D], with ids like the queries'."""
    gallery_ids: tuple[Place, ...] = ()
    """JSON lists of their ids, one a file, where they lie elsewhere."""
    normalize: bool = True
    """Bring vectors to unit length first: protocols score cosines."""
    subsets: Place = ""
    """JSON file of the subsets' ranked ids (CIRR), where the ranked lists do not hold them."""
    row: str = ""
    """Which model of a report's rankings; empty: the last."""
    seed: int | None = None
    """Which seed of that model; null: its first."""


class ScoreRun(SavedRun):
    """The figures of saved vectors, ranked lists or a submission file; no model is needed."""

    data: DataConfig = DataConfig()
    """Benchmark whose queries, galleries and protocol are used; its images are not read."""
    ranks: Place = ""
    """Ranked lists in place of vectors. A report, a Parquet file, a JSON object query id -> image ids, or a
    submission."""
    name: str = "scored"
    """Name in the table."""
    reference_rule: Literal["", "remove", "keep"] = ""
    """Whether a query's own reference leaves its ranking; empty: as the benchmark says."""
    top_k: int = Field(50, ge=1)
    """Length of the ranked lists that are kept."""
    sums: Literal["float64", "float32"] = "float64"
    """Precision in which products are added up; scores are float32. float64 gives the same integers on any machine."""
    device: Effort[str] = "cpu"
    """Where vectors are compared."""
    budget_mb: Effort[int] = Field(256, ge=1)
    """Memory of one block of scores in MiB."""
    parts: Effort[int] = Field(1, ge=1)
    """Pieces that every gallery file is cut into."""
    intervals: bool = False
    """Give every figure a 95 % bootstrap interval."""
    out: Place = ""
    """Report artifact with metrics.json and rankings.parquet; empty writes nothing."""
    ray: Effort[RayConfig] = RayConfig()
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


class BrowseRun(Run):
    """Write a page that shows a saved evaluation query by query, alone or beside another one."""

    data: DataConfig = DataConfig()
    """Benchmark of the rankings: texts, targets and images (missing ones become placeholders)."""
    run: Place = "@report"
    """Rankings: a report, a Parquet or a JSON file."""
    row: str = ""
    """Which model of a report; empty: the last."""
    seed: int | None = None
    """Which seed of that model; null: its first."""
    name: str = ""
    """Name on the page; empty: its row."""
    other: Place = ""
    """Second rankings, compared with `run` query by query."""
    other_row: str = ""
    """Which model of the second; empty: `row`."""
    other_seed: int | None = None
    """Which seed of the second; null: its first."""
    other_name: str = ""
    """Name on the page."""
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
    out: Place = "cirray-browse.html"
    """The page (path or URI)."""
