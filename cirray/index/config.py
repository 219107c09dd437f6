"""Configuration of the index. No torch, no faiss."""

from typing import Literal

from pydantic import Field

from cirray.core.config import Config
from cirray.core.fields import Common


class IndexConfig(Config):
    """How a gallery is searched. The defaults are exact: FAISS flat over every token vector, grouped by image."""

    backend: Common[Literal["faiss", "exact"]] = "faiss"
    """`faiss`, or `exact`: the NumPy twin that scans every token vector."""
    strategy: Literal["exact_tokens", "pooled_rerank"] = "exact_tokens"
    """`exact_tokens` puts every token vector into the index; `pooled_rerank` finds candidates by one pooled vector an
    image (a Q times smaller index) and ranks them by their tokens."""
    factory: Common[str] = Field("Flat", min_length=1)
    """FAISS factory string: `Flat` up to some 20,000 images, then e.g. `IVF1024,SQ8` (nlist about 4 sqrt(N))."""
    search_parameters: str = ""
    """FAISS search parameters by name, e.g. `nprobe=16` or `efSearch=64`; empty keeps the index's own."""
    oversample: int = Field(16, ge=1, le=10_000)
    """Candidates asked of the index per answer wanted: token hits with `exact_tokens` (it asks again until the answer
    is certain when the factory is `Flat`), images to rank again with `pooled_rerank`."""
    reference_features_gb: float = Field(1.0, ge=0.0)
    """Largest size in GB of the vision features kept beside the index, so that a reference picked from the gallery is
    not encoded again; a larger gallery goes through its thumbnails."""
    thumbnail_size: int = Field(256, ge=0, le=1024)
    """Longest side in pixels of the pictures kept in the index for the web page; smaller originals keep their size, and
    0 keeps no pictures."""
    train_sample: int = Field(200_000, ge=1)
    """Most vectors used to train a factory that needs training (IVF, PQ, ...)."""
    seed: int = Field(0, ge=0)
    """Seed of the training sample."""
