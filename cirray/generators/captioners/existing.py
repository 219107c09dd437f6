"""The data set's own captions: no model, no prompt."""

from collections.abc import Sequence

from cirray.core.errors import DataError
from cirray.generators.captioners.base import CaptionerSetup, Picture
from cirray.generators.captioners.config import CAPTIONERS, ExistingConfig


@CAPTIONERS.register("existing")
class ExistingCaptions:
    """Returns the data set's captions."""

    digest = "existing/1"

    def __init__(self, settings: ExistingConfig, setup: CaptionerSetup) -> None:
        """Nothing to load."""

    def content(self, picture: Picture) -> bytes:
        """The caption itself. Raises DataError: for an image that the data set does not caption."""
        if not picture.known.strip():
            raise DataError(f"Image {picture.image_id!r} has no caption in the data set.")
        return picture.known.encode()

    def caption(self, pictures: Sequence[Picture]) -> list[str]:
        """The captions as they are."""
        return [picture.known.strip() for picture in pictures]
