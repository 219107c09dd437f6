"""cirray: Ray-based training and serving for composed image retrieval, scaled up by generated modification text."""

from typing import Any

from cirray.core.version import __version__

__all__ = ["__version__", "load"]


def load(place: str, device: str = "cpu") -> Any:
    """Load what `cirray export` wrote, or a checkpoint or generator artifact.

    Args:
        place: folder or URI; also a bare model folder, such as the `model/` of a checkpoint.
        device: where the models run.

    Returns:
        For a retriever an `ImageTextEncoder` with `queries(images, texts)`, `images(images)` and
        `score(queries, gallery)`.
        For a generator a `ModificationGenerator`.

    Raises:
        ArtifactError: when nothing readable is there.
    """
    from cirray.core.artifacts import is_complete, localize, model_folder
    from cirray.core.storage import is_local, local_path

    bare = is_local(place) and not is_complete(place)
    folder, kind = model_folder(local_path(place) if bare else localize(place))
    if kind == "generator":
        from cirray.generators.store import load_generator

        return load_generator(folder, device)
    from cirray.search_engine import load_encoder

    return load_encoder(folder, device)
