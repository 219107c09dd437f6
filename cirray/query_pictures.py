"""Pictures of a query: read from what was sent or from the gallery, and cut to the part that is meant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cirray.core.errors import CirrayError, DataError
from cirray.data.config import ImageLimits
from cirray.data.images import Source, open_image, picture_digest, read_place
from cirray.data.places import Box, Place
from cirray.index.store import GalleryIndex
from cirray.transforms import ImageTransform, stacked

if TYPE_CHECKING:
    import torch

_WHOLE = 2**31 - 1


def picture_of(
    source: Source | None, image_id: str | None, box: Box | None, gallery: GalleryIndex, limits: ImageLimits,
    whole: bool = False,
) -> Image.Image:  # fmt: skip
    """A picture that was sent, or that of a gallery image, decoded, upright, and cut to a box.

    `whole`: of a gallery image the file that it was made of, while that is there, and not the thumbnail.

    Raises UnknownImageError for an id that is not in the gallery, and DataError for an unusable picture, an id without
    a picture, or a box outside of it.
    """
    limits = limits if box is None else limits.model_copy(update={"draft_side": _WHOLE})
    name = "upload" if isinstance(source, bytes) else None
    if image_id is not None:
        if box is not None and not _in_shares(box):
            raise DataError(f"The box {_said(box)} of the gallery image {image_id[:80]!r} must be in shares, 0 to 1.")
        source = (original_file(gallery, image_id, limits) if box or whole else b"") or _thumbnail(gallery, image_id)
        name = image_id
    assert source is not None
    image = open_image(source, limits, name)
    return image if box is None else cut(image, box)


@dataclass(frozen=True)
class GallerySights:
    """A gallery's images for a reranker: the patches that it keeps, else those of its pictures."""

    gallery: GalleryIndex
    vision: Any
    transform: ImageTransform
    device: "torch.device"
    limits: ImageLimits

    def patches(self, ids: Sequence[str]) -> "torch.Tensor":
        """See `Sights.patches`."""
        import torch

        if self.gallery.keeps_patches:
            return torch.from_numpy(np.array(self.gallery.patches(ids))).to(self.device).float()
        pixels = torch.from_numpy(stacked([self.transform(self.image(name)) for name in ids])).to(self.device)
        with torch.inference_mode():
            return torch.as_tensor(self.vision(pixels)).to(torch.float16).float()  # as stored ones are rounded

    def image(self, image_id: str) -> Image.Image:
        """See `Sights.image`: the original file while it is there, else the thumbnail."""
        return picture_of(None, image_id, None, self.gallery, self.limits, whole=True)

    def picture_key(self, image_id: str) -> str:
        """See `Sights.picture_key`."""
        found = self.gallery.original(image_id)
        return found[1] if found else picture_digest(_thumbnail(self.gallery, image_id))


def cut(image: Image.Image, box: Box) -> Image.Image:
    """The part of an upright picture that lies in a box.

    Raises DataError for numbers that are no box, or one that lies outside.
    """
    x, y, width, height = box
    if not all(map(math.isfinite, box)) or width <= 0 or height <= 0:
        raise DataError(f"The box {_said(box)} is none; give x, y, width, height, the last two above 0.")
    across, down = image.size if _in_shares(box) else (1, 1)
    left, top = max(0, math.floor(x * across)), max(0, math.floor(y * down))
    right, bottom = min(image.width, math.ceil((x + width) * across)), min(image.height, math.ceil((y + height) * down))
    if left >= right or top >= bottom:
        raise DataError(
            f"The box {_said(box)} lies outside of the picture, which has {image.width} x {image.height} pixels."
        )
    return image.crop((left, top, right, bottom))


def original_file(gallery: GalleryIndex, image_id: str, limits: ImageLimits) -> bytes:
    """The file that a gallery image was made of, while it is still the one that was indexed; else empty.

    The path comes from the index, never from a request, and the bytes must have the digest that the index noted.

    Raises UnknownImageError for an id that is not in the gallery.
    """
    found = gallery.original(image_id)
    if found is None:
        return b""
    path, digest = found
    try:
        data = read_place(Place(str(path)), limits, image_id)
    except CirrayError:  # gone, or larger than is decoded here
        return b""
    return data if picture_digest(data) == digest else b""


def _thumbnail(gallery: GalleryIndex, image_id: str) -> bytes:
    picture = gallery.picture(image_id)
    if not picture:
        raise DataError(
            f"The index keeps neither vision features nor a picture of {image_id!r}, so it cannot be a "
            "reference by id. Send the image, or build the index with pictures."
        )
    return picture


def _in_shares(box: Box) -> bool:
    return all(0 <= value <= 1 for value in box)


def _said(box: Box) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box) + "]"
