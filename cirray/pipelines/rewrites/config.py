"""Configuration of the rewrite stage. No torch, no ray."""

from pydantic import Field, model_validator

from cirray.core.fields import Effort, Place
from cirray.core.places import Run
from cirray.data.config import DataConfig
from cirray.models.towers.config import FrozenLanguageConfig
from cirray.pipelines.cluster.config import PoolConfig, RayConfig


class RewriteRun(FrozenLanguageConfig, Run):
    """Rewrite the texts of a data set's queries into captions of the images that are wanted (CIReVL)."""

    data: DataConfig = DataConfig()
    """Whose queries; a query of several texts (`variants`) has each of them rewritten."""
    captions: tuple[Place, ...] = ("@captions",)
    """Captions artifacts of the queries' references (`cirray caption parts=[references]`)."""
    rewriter: str = "join"
    """`language`: a language model follows the instruction. `join`: "{caption}, {modification}", no model: the simple
    twin, and what the embedded world has, whose small language model cannot follow instructions."""
    source: Place = ""
    """Folder or hub id of the language model (`language`)."""
    prompt: str = ""
    """Version of the instruction (`language`): `circo/1`, `cirr/1`, `fashioniq/1`, `plain/1`."""
    new_tokens: int = Field(80, ge=1)
    """Longest answer in tokens; CLIP reads 77."""
    reuse: Effort[tuple[Place, ...]] = ()
    """Rewrites artifacts whose texts are used again where caption, text, instruction and rewriter are the same."""
    batch: Effort[int] = Field(32, ge=1)
    """Texts rewritten together."""
    part_rows: int = Field(256, ge=1)
    """Texts per part. A killed run repeats only the parts that it did not finish."""
    pool: Effort[PoolConfig] = PoolConfig(size=1)
    """Actors with a rewriter each."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "@rewrites"
    """Rewrites artifact (path or URI), for `evaluate texts=` and `submit texts=`."""

    @model_validator(mode="after")
    def _named(self) -> "RewriteRun":
        if not self.captions:
            raise ValueError("captions needs at least one artifact")
        if self.rewriter == "language" and not (self.source and self.prompt):
            raise ValueError("rewriter language needs source (a language model) and prompt (e.g. plain/1)")
        return self
