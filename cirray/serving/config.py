"""Configuration of the service: what is loaded (arguments) and how it answers (settings, changed without a restart)."""

from pydantic import Field, model_validator

from cirray.core.config import Config


class ServeArgs(Config):
    """Arguments of `cirray.serving.app:build_app`: the `args` section of a Serve config file."""

    checkpoint: str = "~/cirray/quickstart/checkpoint"
    """Checkpoint artifact: model and its vision tower (path or URI)."""
    index: str = "~/cirray/quickstart/index"
    """Index artifact built with that checkpoint (path or URI)."""
    device: str = "cpu"
    """Where the models run: cpu, cuda, cuda:1, ..."""
    threads: int = Field(1, ge=1)
    """Threads of one replica's matrix products; give the replica as many CPUs."""
    max_body_mb: float = Field(10.0, gt=0, le=512)
    """Largest request body in MiB; a longer one is answered 413 while it is still arriving."""
    max_pixels: int = Field(25_000_000, ge=1)
    """Largest reference image, width times height (decoding takes about 6 bytes a pixel)."""
    body_timeout_s: float = Field(30.0, gt=0)
    """Seconds a client has to send its body before it is answered 408."""
    kept_references: int = Field(64, ge=0)
    """Latest reference images whose encoding is kept for further texts about them; 0: each query encodes its own."""
    verify: bool = True
    """Compare the index files with their digests at the start (reads every byte once)."""


class ServingSettings(Config):
    """`user_config` of the deployment: Serve hands changes to running replicas."""

    default_k: int = Field(12, ge=1)
    """Answers when a request does not say."""
    max_k: int = Field(100, ge=1, le=10_000)
    """Most answers of one request."""
    max_batch_size: int = Field(32, ge=1)
    """Most queries in one pass through the model."""
    batch_wait_timeout_s: float = Field(0.003, ge=0)
    """How long the first query of a batch waits for company, in seconds."""

    @model_validator(mode="after")
    def _default_fits(self) -> "ServingSettings":
        if self.default_k > self.max_k:
            raise ValueError(f"default_k {self.default_k} must not exceed max_k {self.max_k}")
        return self
