"""Pictures for generators that look at them: image ids in, small picture files out."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from cirray.data.config import ImageLimits
from cirray.data.images import open_place
from cirray.data.pixels import thumbnail
from cirray.data.places import Place
from cirray.generators.engines.base import Shot


class Shots:
    """Opens pictures, upright and small, and keeps the latest ones encoded: pairs share images."""

    def __init__(self, limits: ImageLimits, side: int, kept: int = 512) -> None:
        """Take caps on the files, the longest side in pixels, and how many encoded pictures stay in memory."""
        self._limits, self._side, self._kept = limits, side, kept
        self._shots: OrderedDict[tuple[str, str], Shot] = OrderedDict()

    def __call__(self, image_id: str, place: str) -> Shot:
        """The picture at a place (`Place.text()`): PNG or JPEG without metadata.

        Raises DataError: it is missing, damaged or out of limits.
        """
        key = (image_id, place)
        if key not in self._shots:
            image = open_place(Place.parse(place), self._limits, image_id)
            self._shots[key] = Shot(image_id, thumbnail(image, self._side))
            while len(self._shots) > self._kept:
                self._shots.popitem(last=False)
        self._shots.move_to_end(key)
        return self._shots[key]


@dataclass(frozen=True)
class PictureLookup:
    """Pictures by id: `places` says where each is."""

    places: Mapping[str, str]
    shots: Shots

    def shot(self, image_id: str) -> Shot:
        """One picture; see `Shots`."""
        return self.shots(image_id, self.places[image_id])
