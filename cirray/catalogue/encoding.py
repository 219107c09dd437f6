"""Pictures as changes of a gallery: decoded one by one, encoded together.

Shapes: B images, Q tokens an image, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cirray.catalogue.change import Change
from cirray.data.config import ImageLimits
from cirray.data.images import open_image, picture_digest
from cirray.data.pixels import thumbnail
from cirray.index.pictures import size_of
from cirray.transforms import stacked


@dataclass(frozen=True)
class Decoded:
    """A picture that waits for the model."""

    id: str
    pixels_HWC: np.ndarray
    picture: bytes
    """Its thumbnail."""
    content: str
    origin: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class PictureEncoder:
    """Turns pictures into changes, as the index of a folder makes its vectors."""

    def __init__(
        self, encoder: Any, vision: Any, transform: Any, thumbnail_size: int, device: Any = "cpu",
        limits: ImageLimits | None = None,
    ) -> None:  # fmt: skip
        """Take loaded parts (`load_models`), the longest side of thumbnails (0: none), and limits on pictures."""
        self._encoder, self._vision, self._transform = encoder, vision, transform
        self._size, self._device, self._limits = thumbnail_size, device, limits or ImageLimits()

    def decode(
        self, image_id: str, data: bytes, origin: str = "", metadata: Mapping[str, Any] | None = None, name: str = ""
    ) -> Decoded:
        """Decode one picture file.

        Args:
            image_id: its id in the gallery.
            data: the file's bytes.
            origin: its path, where it has one.
            metadata: values by column.
            name: what to call it in errors; empty: an upload.

        Raises:
            DataError: for a picture that cannot be used.
        """
        image = open_image(data, self._limits, name or None)
        small = thumbnail(image, self._size) if self._size else b""
        return Decoded(image_id, self._transform(image), small, picture_digest(data), origin, metadata or {})

    @torch.inference_mode()
    def encode(self, pictures: Sequence[Decoded]) -> list[Change]:
        """Encode pictures in one pass, with patch tokens rounded to fp16 as the feature store keeps them."""
        if not pictures:
            return []
        pixels = torch.from_numpy(stacked([item.pixels_HWC for item in pictures])).to(self._device)
        tokens_BQD = self._encoder.encode_gallery(self._vision(pixels).to(torch.float16).float())
        rows = tokens_BQD.float().cpu().numpy().astype(np.float16)
        return [
            Change(item.id, row, item.picture, size_of(item.picture), item.content, item.origin, item.metadata)
            for item, row in zip(pictures, rows, strict=True)
        ]
