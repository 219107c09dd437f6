"""Roots of the configuration tree that no single package owns. No torch, no ray."""

from cirray.core.config import Config
from cirray.data.config import ShapesConfig


class WorldRun(Config):
    """Write the embedded world."""

    shapes: ShapesConfig = ShapesConfig()
    out: str = "~/cirray/quickstart/world"
    """Where the folder layout is written (path or URI)."""
