"""Ray Data's workers of the embed stage: pictures of a part in, one shard of a features artifact out."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from cirray.core.errors import DataError
from cirray.data.config import ImageLimits, transform_config
from cirray.data.images import open_image, picture_digest, read_place
from cirray.data.places import Place
from cirray.features.shards import FeatureShardWriter
from cirray.models.towers.places import open_tower
from cirray.pipelines.cluster.streaming import Columns
from cirray.transforms import build_transform, stacked


def decode_images(columns: Columns, transform: Mapping[str, Any], limits: Mapping[str, Any]) -> Columns:
    """Read and decode images, once.

    Args:
        columns: `image_id`, `place` (what `Place.text` wrote).
        transform: fields of a `TransformConfig`.
        limits: fields of an `ImageLimits`.

    Returns: `image_id`, `pixels` (`stacked`, black where there is an error), `error` (a reason, or empty) and `content`
    (`picture_digest` of the file, empty where there is none to read).
    """
    build, caps = build_transform(transform_config(transform)), ImageLimits(**limits)
    pixels = [build(Image.new("RGB", (build.size, build.size), "black"))] * len(columns["image_id"])
    errors, contents = (np.full(len(pixels), "", dtype=object) for _ in range(2))
    for row, (image_id, text) in enumerate(zip(columns["image_id"], columns["place"], strict=True)):
        place = Place.parse(str(text))
        name = place.name(str(image_id))
        try:
            data = read_place(place, caps, name)
            contents[row] = picture_digest(data)
            pixels[row] = build(open_image(data, caps, name, place.box))
        except DataError as error:
            errors[row] = str(error)
    return {"image_id": columns["image_id"], "pixels": stacked(pixels), "error": errors, "content": contents}


class EncodeImages:
    """Actor: pixels of one part through the frozen vision tower, written as one shard of a features artifact."""

    def __init__(self, tower: str, work_uri: str, batch: int = 128, device: str = "cpu") -> None:
        """Load the tower (once per actor)."""
        self._tower, self._device, self._batch = open_tower(tower).to(device), device, batch
        self._writer = FeatureShardWriter(work_uri)

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Encode and write one part.

        Args:
            columns: what `decode_images` returns.

        Returns: `rejected` images, and how many the tower was `asked` for.
        """
        reasons = [str(reason or "") for reason in columns["error"]]
        good = [row for row, reason in enumerate(reasons) if not reason]
        bad = [(str(columns["image_id"][row]), reason) for row, reason in enumerate(reasons) if reason]
        patches_NPD = self.encode(np.asarray(columns["pixels"])[good])
        ids = [str(name) for name in columns["image_id"]]
        contents = dict(zip(ids, map(str, columns["content"]), strict=True))
        self._writer.write(int(columns["part"][0]), [ids[row] for row in good], patches_NPD, bad, contents)
        return {"rejected": len(bad), "asked": len(good)}

    def encode(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Patch tokens, fp16 [n, P, D], of uint8 pixels."""
        import torch

        result = np.empty((len(pixels_NHWC), self._tower.num_tokens, self._tower.width), dtype=np.float16)
        with torch.inference_mode():
            for start in range(0, len(pixels_NHWC), self._batch):
                pixels = torch.from_numpy(np.ascontiguousarray(pixels_NHWC[start : start + self._batch]))
                result[start : start + self._batch] = self._tower(pixels.to(self._device)).half().cpu().numpy()
        return result
