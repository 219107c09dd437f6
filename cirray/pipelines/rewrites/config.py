"""Configuration of the rewrite stage. No torch, no ray."""

from typing import Annotated

from pydantic import Field

from cirray.core.fields import Common, Effort, Kind, Place, Some
from cirray.core.places import Run
from cirray.data.config import DataConfig
from cirray.generators.rewriters.config import RewriterChoice
from cirray.pipelines.cluster.config import PoolConfig, RayConfig


class RewriteRun(Run):
    """Rewrite the texts of a data set's queries into captions of the images that are wanted (CIReVL)."""

    data: DataConfig = DataConfig()
    """Whose queries; a query of several texts (`variants`) has each of them rewritten."""
    captions: Some[tuple[Annotated[Place, Kind("captions")], ...]] = ("@captions",)
    """Captions artifacts of the queries' references (`cirray caption parts=[references]`)."""
    rewriter: Common[RewriterChoice] = RewriterChoice()
    """What writes the captions of the wanted images."""
    reuse: Effort[tuple[Place, ...]] = ()
    """Rewrites artifacts whose texts are used again where caption, text, rewriter and its settings are the same."""
    batch: Effort[int] = Field(32, ge=1)
    """Texts rewritten together."""
    part_rows: int = Field(256, ge=1)
    """Texts per part; what a killed run has rewritten of one is kept."""
    pool: Effort[PoolConfig] = PoolConfig(size=1)
    """Actors with a rewriter each."""
    ray: Effort[RayConfig] = RayConfig()
    out: Place = "@rewrites"
    """Rewrites artifact (path or URI), for `evaluate texts=` and `submit texts=`."""
