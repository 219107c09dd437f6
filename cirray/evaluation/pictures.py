"""Thumbnails as data URIs, so that a report is one file."""

import base64
import io

from cirray.core.errors import DataError
from cirray.core.log import get_logger
from cirray.data.benchmark import ImageTable
from cirray.data.config import ImageLimits
from cirray.data.images import open_image, picture_digest, read_place

_LOGGER = get_logger("evaluation.pictures")
_LOGGED = 5


class Thumbnails:
    """Data URI of any image of a data set, at most `side` pixels wide and high; made once per image.

    Small images stay as they are (PNG), larger ones become JPEG. An image that cannot be read or has changed since it
    was embedded has no thumbnail; the first few are logged, and `missing` counts them all.
    """

    def __init__(self, images: ImageTable, side: int = 160) -> None:
        """Take the images' places."""
        self._images, self._side = images, side
        self._made: dict[str, str | None] = {}

    @property
    def missing(self) -> int:
        """Images asked for that could not be read."""
        return sum(made is None for made in self._made.values())

    def uri(self, image_id: str) -> str | None:
        """`data:image/...;base64,...`, or None when the image cannot be read."""
        if image_id not in self._made:
            try:
                self._made[image_id] = self._encode(image_id)
            except DataError as error:
                self._made[image_id] = None
                if self.missing <= _LOGGED:
                    _LOGGER.warning("no picture in the report: %s", error)
        return self._made[image_id]

    def _encode(self, image_id: str) -> str:
        limits, place = ImageLimits(), self._images.place(image_id)
        data = read_place(place, limits, image_id)
        if self._images.contents.get(image_id) not in (None, picture_digest(data)):
            raise DataError(f"Image {image_id!r} is not the picture that was embedded; its file has changed.")
        image = open_image(data, limits, image_id, place.box)
        small = max(image.size) <= self._side
        image.thumbnail((self._side, self._side))
        stream = io.BytesIO()
        image.save(stream, "PNG" if small else "JPEG", **({} if small else {"quality": 82}))
        kind = "png" if small else "jpeg"
        return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
