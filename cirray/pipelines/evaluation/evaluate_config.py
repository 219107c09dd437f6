"""Configuration of the evaluation stage. No torch, no ray."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cirray.core.fields import Effort, Features, Kind, Place, Some
from cirray.core.places import Run
from cirray.data.config import DataConfig
from cirray.generators.rerankers.config import RerankChoice
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.evaluation.config import SavedRun


class EvaluateRun(Run):
    """Score a checkpoint on a data set's queries and write a report with pictures."""

    data: DataConfig = DataConfig()
    """Data set whose queries and gallery are used; its protocol is printed with the figures."""
    checkpoint: Annotated[Place, Kind("checkpoint")] = "@checkpoint"
    """Checkpoint artifact (path or URI)."""
    features: Some[tuple[Features, ...]] = ("@features",)
    """Features artifacts of all references and gallery images, made by the checkpoint's vision tower."""
    index: Annotated[Place, Kind("index")] = ""
    """Index artifact of the checkpoint with the gallery's vectors; empty: encode the gallery. With an index (fp16,
    memory-mapped) the gallery is neither encoded again nor held in memory."""
    texts: Annotated[Place, Kind("rewrites")] = ""
    """Rewrites artifact (`cirray rewrite`) whose texts replace the queries' own."""
    rerank: RerankChoice | None = None
    """Score the first answers of every query again: `rerank=matching`, `rerank.kind=lmm`."""
    out: Place = "@report"
    """Report artifact (path or URI)."""
    name: str = "composed"
    """Name of the model in the table."""
    ks: tuple[int, ...] = ()
    """Cut-offs of recall; empty: the data set's own."""
    top_k: int = Field(50, ge=1)
    """Length of the ranked lists that are kept."""
    intervals: bool = False
    """Give every metric a 95 % bootstrap interval. Recall always has one."""
    batch: Effort[int] = Field(128, ge=1)
    """Images and queries per forward pass."""
    device: Effort[str] = "cpu"
    """Where the model runs."""
    parts: Effort[int] = Field(1, ge=1)
    """With an index: pieces of its vectors; several are compared with the queries side by side, by tasks on a
    cluster."""
    pool: Effort[PoolConfig] = PoolConfig()
    """Actors that encode a large gallery; where `device` is a GPU and they have none, this process does it."""
    ray: Effort[RayConfig] = RayConfig()
    """The cluster of several `parts` and of `pool`; its nodes must see the index, and `out`."""
    ray_from: Effort[int] = Field(50_000, ge=0)
    """Number of gallery images from which they are encoded in parts, which a killed run keeps, and stay on disk."""
    seed: int = Field(0, ge=0)
    """Seed of the queries drawn for the page."""
    html: bool = True
    """Write report.html (reads the images of the data set)."""
    shown: int = Field(6, ge=1, le=100)
    """Queries per group on the page."""
    browse: int = Field(0, ge=0, le=5000)
    """Also write browse.html, a page of all queries; this many have pictures, 0: no page."""
    image_only_row: bool = True
    """Also show how the frozen features rank without any text."""
    triplets: tuple[Annotated[Place, Kind("triplets")], ...] = ()
    """Triplets artifacts whose generated texts are shown on the page."""
    samples: int = Field(12, ge=0, le=200)
    """Generated texts shown."""
    judge: Place = ""
    """Root of a shapes world whose scenes judge the texts that are shown."""
    histories: tuple[Place, ...] = ()
    """Artifacts whose training curves (`history.jsonl`) are shown beside the checkpoint's own."""

    @model_validator(mode="after")
    def _usable(self) -> "EvaluateRun":
        if self.rerank and self.index:
            raise ValueError(
                "rerank looks at the images again, which an index does not hold; leave out index, or rerank"
            )
        if self.parts > 1 and not self.index:
            raise ValueError(
                f"parts {self.parts} are pieces of an index's vectors; name one (cirray index), or parts=1"
            )
        if any(k < 1 for k in self.ks):
            raise ValueError("every cut-off in ks must be at least 1")
        return self


class SubmitRun(SavedRun):
    """Write the files that a benchmark's test server takes, or check one."""

    check: Place = ""
    """Check this file instead of writing one. `data` is needed only to check names and keys against the benchmark."""
    data: DataConfig | None = None
    """The benchmark and its split."""
    rankings: Place = ""
    """Report artifact, or Parquet or JSON file of ranked ids. Or rank here: with `checkpoint` and `features`, or with
    vectors."""
    checkpoint: Place = ""
    """Checkpoint artifact that ranks the queries."""
    features: tuple[Place, ...] = ()
    """Features artifacts of all references and gallery images, made by the checkpoint's vision tower."""
    texts: Place = ""
    """With a checkpoint: rewrites artifact whose texts the queries search with."""
    kind: Literal["", "cirr", "circo"] = ""
    """Which server; empty: what the data set or the checked file says."""
    out: Place = "submission"
    """Folder (path or URI) for the files; files of the same names there are replaced."""
    batch: Effort[int] = Field(128, ge=1)
    """Images and queries per forward pass."""
    device: Effort[str] = "cpu"
    """Where the model runs."""
