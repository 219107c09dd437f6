"""Roots of the configuration tree that no single package owns. No torch, no ray."""

from cirray.core.config import Config
from cirray.data.config import ShapesConfig


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
