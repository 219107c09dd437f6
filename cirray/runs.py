"""Roots of the configuration tree that no single package owns. No torch, no ray."""

from cirray.core.config import Config
from cirray.data.config import DataConfig, ShapesConfig


class WorldRun(Config):
    """Write the embedded world."""

    shapes: ShapesConfig = ShapesConfig()
    out: str = "~/cirray/quickstart/world"
    """Where the folder layout is written (path or URI)."""


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
