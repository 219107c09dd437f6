"""cirray: Ray-based training and serving for composed image retrieval, scaled up by generated modification text."""

from collections.abc import Mapping
from typing import Any

from cirray.core.version import __version__

__all__ = ["__version__", "load"]


def load(
    place: str, device: str = "cpu", composition: str = "", weight: float | None = None,
    rerank: str | Mapping[str, Any] | None = None,
) -> Any:  # fmt: skip
    """Load a model: published weights, what `cirray export` wrote, or a checkpoint, index or generator artifact.

    Args:
        place: folder, URI or hub id of CLIP, SigLIP or BGE-VL, a name of open_clip's (`ViT-B-32/laion2b_s34b_b79k`,
            `hf-hub:OWNER/NAME`, `open_clip:NAME=FILE`), an artifact, or an export, here or on the hub; also a bare
            model folder, such as the `model/` of a checkpoint.
        device: where the models run.
        composition: without training, `sum`, `slerp`, `text` or `image`; empty: the model's usual one.
        weight: the text's usual share in sum and slerp, 0 to 1.
        rerank: of an index, what scores the first answers of every query again: a kind (`matching`) or all settings,
            `{"kind": "matching", "top": 20}`.

    Returns:
        For a retriever a `cirray.gallery.Model`, trained or not: `index(folder)` makes a gallery to search in;
        `queries(images, texts)`, `images(images)`, `texts(texts)` give vectors, `score(queries, gallery)` their
        scores. For an index a `cirray.gallery.Gallery` to search in. For a generator a `ModificationGenerator`.

    Raises:
        ArtifactError: when nothing readable is there; says which files are needed.
        ConfigError: for a composition that the model does not know, or a model that lacks what the reranker needs.
    """
    from cirray.gallery import load_any

    return load_any(place, device, composition, weight, rerank)
