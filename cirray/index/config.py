"""Backends of the index and their settings. No torch, no faiss."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from cirray.core.components import Component
from cirray.core.config import Config
from cirray.core.fields import Common
from cirray.core.registry import Registry
from cirray.index.faiss_library import is_there

if TYPE_CHECKING:
    from cirray.index.protocol import Backend


class FaissConfig(Config):
    """FAISS. The defaults are exact: flat over every token vector, grouped by image."""

    factory: Common[str] = Field("Flat", min_length=1)
    """FAISS factory string: `Flat` up to some 20,000 images, then e.g. `IVF1024,SQ8` (nlist about 4 sqrt(N))."""
    strategy: Literal["exact_tokens", "pooled_rerank"] = "exact_tokens"
    """`exact_tokens` puts every token vector into the index; `pooled_rerank` finds candidates by one pooled vector an
    image (a Q times smaller index) and ranks them by their tokens."""
    search_parameters: str = ""
    """FAISS search parameters by name, e.g. `nprobe=16` or `efSearch=64`; empty keeps the index's own."""
    oversample: int = Field(16, ge=1, le=10_000)
    """Candidates asked of the index per answer wanted: token hits with `exact_tokens` (it asks again until the answer
    is certain when the factory is `Flat`), images to rank again with `pooled_rerank`."""
    train_sample: int = Field(200_000, ge=1)
    """Most vectors used to train a factory that needs training (IVF, PQ, ...)."""
    seed: int = Field(0, ge=0)
    """Seed of the training sample."""


INDEXES: "Registry[type[Backend[Any]]]" = Registry(
    "index backend", ["cirray.index.exact", "cirray.index.faiss_index"], {"faiss": FaissConfig, "exact": Config}
)
"""Name -> class of the backend."""


def usual_kind() -> str:
    """The backend of an index that names none: `faiss`, or `exact` where FAISS is not installed."""
    return "faiss" if is_there() else "exact"


class IndexBackend(Component):
    """What searches the gallery."""

    registry = INDEXES
    kind: str = usual_kind()
    """Name of the backend: `faiss`, or `exact`, the NumPy twin that scans every token vector, and the default where
    FAISS is not installed."""
