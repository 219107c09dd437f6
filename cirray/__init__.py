"""cirray: Ray-based training and serving for composed image retrieval, scaled up by generated modification text."""

from cirray.core.version import __version__

__all__ = ["__version__"]
