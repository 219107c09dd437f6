"""Pictures for generators that look at them: image ids in, small picture files out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cirray.data.config import ImageLimits
from cirray.data.images import open_place
from cirray.data.pixels import thumbnail
from cirray.data.places import Place
from cirray.generators.engines.base import Shot


class LatestShots:
    """The latest pictures, encoded: pairs and queries share images."""

    def __init__(self, kept: int = 512) -> None:
        """Take how many stay in memory."""
        self._kept, self._shots = kept, dict[str, Shot]()

    def get(self, key: str, make: Callable[[], Shot]) -> Shot:
        """The picture of a key, made when it is not here. Raises what `make` raises."""
        shot = self._shots.pop(key, None) or make()
        self._shots[key] = shot
        if len(self._shots) > self._kept:
            del self._shots[next(iter(self._shots))]
        return shot


class Shots:
    """Opens pictures, upright and small."""

    def __init__(self, limits: ImageLimits, side: int, kept: int = 512) -> None:
        """Take caps on the files, the longest side in pixels, and how many encoded pictures stay in memory."""
        self._limits, self._side, self._latest = limits, side, LatestShots(kept)

    def __call__(self, image_id: str, place: str) -> Shot:
        """The picture at a place (`Place.text()`): PNG or JPEG without metadata.

        Raises DataError: it is missing, damaged or out of limits.
        """

        def opened() -> Shot:
            image = open_place(Place.parse(place), self._limits, image_id)
            return Shot(image_id, thumbnail(image, self._side))

        return self._latest.get(f"{place} {image_id}", opened)


@dataclass(frozen=True)
class PictureLookup:
    """Pictures by id: `places` says where each is."""

    places: Mapping[str, str]
    shots: Shots

    def shot(self, image_id: str) -> Shot:
        """One picture; see `Shots`."""
        return self.shots(image_id, self.places[image_id])
