"""Gallery pictures large: made from the original file while it is still the one that was indexed.

A request names an id of the gallery, never a path. The path comes from the index, and the file's bytes must have the
digest that the index noted: nothing else is ever decoded or sent. What is sent is encoded anew, upright and without
metadata.
"""

from cirray.core.errors import CirrayError
from cirray.data.config import ImageLimits
from cirray.data.images import open_image
from cirray.data.pixels import thumbnail
from cirray.index.store import GalleryIndex
from cirray.query_pictures import original_file

LARGE = 1600
"""Longest side in pixels of a large picture."""
_DRAFT = LARGE * 3 // 4
"""Large JPEGs are decoded smaller as long as both sides stay at least this long: a third of the time for 12 million
pixels of 4:3."""


def large_picture(gallery: GalleryIndex, image_id: str, limits: ImageLimits) -> bytes:
    """Encoded picture (JPEG or PNG) of at most `LARGE` pixels a side; the thumbnail where the original is no more.

    Args:
        gallery: the index.
        image_id: id of a gallery image.
        limits: caps on the original, checked before it is decoded.

    Raises:
        UnknownImageError: for an id that is not in the gallery.
    """
    data = original_file(gallery, image_id, limits)
    try:
        if data:
            return thumbnail(open_image(data, limits.model_copy(update={"draft_side": _DRAFT}), image_id), LARGE)
    except CirrayError:
        pass  # more than this service decodes
    return gallery.picture(image_id)
