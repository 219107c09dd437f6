"""Pictures for generators that look at them: image ids in, small picture files out."""

from collections import OrderedDict
from collections.abc import Mapping

from cirray.data.config import ImageLimits
from cirray.data.images import open_place
from cirray.data.pixels import thumbnail
from cirray.data.places import Place
from cirray.generators.engines.base import Shot


class PictureLookup:
    """Opens pictures at their places, upright and small; the latest ones are kept, since pairs share images."""

    def __init__(self, places: Mapping[str, str], limits: ImageLimits, side: int, kept: int = 256) -> None:
        """Take places; nothing is opened yet.

        Args:
            places: image id -> `Place.text()`.
            limits: caps on the files.
            side: longest side in pixels.
            kept: how many encoded pictures stay in memory.
        """
        self._places, self._limits, self._side, self._kept = places, limits, side, kept
        self._shots: OrderedDict[str, Shot] = OrderedDict()

    def shot(self, image_id: str) -> Shot:
        """One picture: PNG or JPEG without metadata.

        Raises:
            DataError: it is missing, damaged or out of limits.
        """
        if image_id not in self._shots:
            image = open_place(Place.parse(self._places[image_id]), self._limits, image_id)
            self._shots[image_id] = Shot(image_id, thumbnail(image, self._side))
            while len(self._shots) > self._kept:
                self._shots.popitem(last=False)
        self._shots.move_to_end(image_id)
        return self._shots[image_id]
