"""Ray clusters, actor pools and workers as plain values. No torch, no ray."""

from typing import Literal

from pydantic import Field, model_validator

from cirray.core.config import Config
from cirray.core.fields import Common, Effort, Place

Part = Literal["labelled", "pool", "gallery", "references"]


class RayConfig(Config):
    """Which Ray cluster a stage uses. None of these values changes what a stage writes."""

    enabled: Common[Effort[bool]] = True
    """Use Ray; false: the same work in this process, one part after another."""
    address: Common[Effort[str]] = ""
    """A running cluster (`auto`, `host:port`). Empty: `RAY_ADDRESS` if set (as inside jobs), else a private one."""
    autoscaling: Effort[bool] = False
    """The cluster grows on demand: wait for nodes instead of refusing what it cannot hold now."""
    num_cpus: Effort[int | None] = Field(None, ge=1)
    """Logical CPUs of a private cluster; default: the machine's, at least 8, so that no stage can starve another."""
    num_gpus: Effort[int | None] = Field(None, ge=0)
    """GPUs of a private cluster; default: what Ray finds."""
    object_store_memory: Effort[int] = Field(500_000_000, ge=80_000_000)
    """Bytes of shared memory of a private cluster."""
    dashboard: Effort[bool] = False
    """Start the dashboard of a private cluster (early-stopped trials of a sweep need it)."""
    temp_dir: Effort[Place] = ""
    """Session folder of a private cluster; keep it short. Default: Ray's own."""
    no_progress_timeout_s: Effort[float] = Field(120.0, gt=0)
    """Seconds in which a Ray Data stage must finish another part once it has finished one; three times what the first
    one took are always allowed. Longer is an error."""
    show_output: Effort[bool] = False
    """Show Ray's own bars and messages."""


class PoolConfig(Config):
    """A pool of equal actors: of a size, or one that grows from `min` to `max` as the cluster has room."""

    size: Common[Effort[int]] = Field(2, ge=1)
    """Number of actors, where no `max` is given."""
    min: Effort[int | None] = Field(None, ge=1)
    """Actors that a growing pool begins with; null: one."""
    max: Effort[int | None] = Field(None, ge=1)
    """Actors that it may grow to, also on machines that join the cluster later; null: it stays at `size`."""
    cpus: Effort[float] = Field(0.25, ge=0)
    """Logical CPUs that one actor holds for the whole run; a scheduling figure, not a speed."""
    gpus: Common[Effort[float]] = Field(0.0, ge=0)
    """GPUs of one actor; 0 computes on the CPU, a fraction shares one."""
    threads: Effort[int] = Field(1, ge=1)
    """Threads of one actor's matrix products."""

    @model_validator(mode="after")
    def _possible(self) -> "PoolConfig":
        if self.max is None and self.min is not None:
            raise ValueError(f"min {self.min} says where a growing pool begins; give max too, or size alone")
        if self.max is not None and self.max < (self.min or 1):
            raise ValueError(f"max {self.max} is below min {self.min}; a pool grows from min to max")
        if self.gpus > 1 and self.gpus % 1:
            raise ValueError(f"gpus {self.gpus:g} is neither a share of one GPU (0.5) nor a whole number")
        return self

    @property
    def bounds(self) -> tuple[int, int]:
        """The least and the largest number of actors."""
        return (self.size, self.size) if self.max is None else (self.min or 1, self.max)

    @property
    def device(self) -> str:
        """Where an actor's models run."""
        return "cuda" if self.gpus else "cpu"


class RayTrainConfig(RayConfig):
    """Where training runs: on Ray Train's workers or, with `enabled: false`, in this process with the same result."""

    num_workers: Common[Effort[int]] = Field(1, ge=1)
    """Number of workers. They share the global batch; the result does not depend on how many there are."""
    use_gpu: Common[Effort[bool]] = False
    """One GPU for each worker."""
    cpus_per_worker: Effort[float] = Field(1.0, gt=0)
    """Logical CPUs of a worker."""
    max_failures: Effort[int] = Field(3, ge=0)
    """Restarts from the last checkpoint after a worker died."""
    storage: Effort[Place] = ""
    """Where checkpoints are kept for resuming (path or URI that all nodes reach). Default: beside the output."""
    poll_s: Effort[float] = Field(0.5, gt=0)
    """How often Ray Train's controller looks after its workers."""
    start_timeout_s: Effort[float] = Field(120.0, gt=0)
    """How long workers may take to start."""
