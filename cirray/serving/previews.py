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

MEDIUM, LARGE = 640, 1600
"""Longest side in pixels of a picture in a grid on a fine screen, and of a large one."""


def large_picture(gallery: GalleryIndex, image_id: str, limits: ImageLimits, side: int = LARGE) -> bytes:
    """Encoded picture (JPEG or PNG) of at most `side` pixels a side; the thumbnail where the original is no more.

    Large JPEGs are decoded smaller as long as both sides stay three quarters as long as that: a third of the time for
    12 million pixels of 4:3.

    Args:
        gallery: the index.
        image_id: id of a gallery image.
        limits: caps on the original, checked before it is decoded.
        side: longest side in pixels.

    Raises:
        UnknownImageError: for an id that is not in the gallery.
    """
    data = original_file(gallery, image_id, limits)
    try:
        if data:
            draft = limits.model_copy(update={"draft_side": side * 3 // 4})
            return thumbnail(open_image(data, draft, image_id), side)
    except CirrayError:
        pass  # more than this service decodes
    return gallery.picture(image_id)
