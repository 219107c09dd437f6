"""Configuration of the data stages. No torch, no ray."""

from pydantic import Field

from cirray.core.fields import Effort, Place
from cirray.core.places import Run
from cirray.data.config import DataConfig, ImageLimits, ShapesConfig
from cirray.pipelines.cluster.config import RayConfig


class DoctorRun(Run):
    """Check a data set on disk."""

    folder: Place = ""
    """Root of the data set; empty: as `data` says. On the command line: `cirray doctor FOLDER`."""
    dataset: str = ""
    """Format, as in `data.format`; empty: what `data` says."""
    data: DataConfig = DataConfig()
    """Everything else about it, e.g. `data.cirr.images`."""
    splits: tuple[str, ...] = ()
    """Splits that must be there; empty: those that have files."""
    decode: bool = True
    """Read and decode every image; without it only annotations are checked."""
    accept: tuple[str, ...] = ()
    """Codes of findings that are reported but do not count, e.g. `[duplicate, wrong_extension]`."""
    limits: ImageLimits = ImageLimits()
    """Limits on images."""
    shard_rows: Effort[int] = Field(512, ge=1)
    """Images per part."""
    tasks: Effort[int] = Field(2, ge=1)
    """Processes that decode."""
    ray_from: Effort[int] = Field(5000, ge=0)
    """Number of images from which Ray is used; checking fewer takes less time than starting a cluster."""
    as_json: Effort[bool] = False
    """Print the whole report as JSON (`--json`)."""
    out: Place = ""
    """Artifact with the report and a table of every image's hash (path or URI); empty: none."""
    ray: Effort[RayConfig] = RayConfig()


class WorldRun(Run):
    """Write the embedded world."""

    shapes: ShapesConfig = ShapesConfig()
    out: Place = "@world"
    """Where the folder layout is written (path or URI)."""
