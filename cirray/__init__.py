"""cirray: Ray-based training and serving for composed image retrieval, scaled up by generated modification text."""

from typing import Any

from cirray.core.version import __version__

__all__ = ["__version__", "load"]


def load(place: str, device: str = "cpu", composition: str = "", weight: float | None = None) -> Any:
    """Load a model: published weights, what `cirray export` wrote, or a checkpoint or generator artifact.

    Args:
        place: folder, URI or hub id of CLIP, SigLIP or BGE-VL, a name of open_clip's (`ViT-B-32/laion2b_s34b_b79k`,
            `hf-hub:OWNER/NAME`, `open_clip:NAME=FILE`), an artifact or an export; also a bare model folder, such as the
            `model/` of a checkpoint.
        device: where the models run.
        composition: without training, `sum`, `slerp`, `text` or `image`; empty: the model's usual one.
        weight: the text's usual share in sum and slerp, 0 to 1.

    Returns:
        For a retriever an `ImageTextEncoder`, trained or not: `queries(images, texts)`, `images(images)`,
        `texts(texts)`, `score(queries, gallery)`; its parts are `encoder` (a `Retriever`), `vision` and `transform`,
        and `source` is the place. For a generator a `ModificationGenerator`.

    Raises:
        ArtifactError: when nothing readable is there; says which files are needed.
        ConfigError: for a composition that the model does not know.
    """
    from cirray.core.artifacts import own_model

    if (own := own_model(place)) is not None and own[1] == "generator":
        from cirray.generators.store import load_generator

        return load_generator(own[0], device)
    from cirray.image_text import open_encoder

    return open_encoder(place, device, composition, weight)
