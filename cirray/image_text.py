"""A model of pictures and texts without any index: vectors of composed queries and of images, and their scores."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from cirray.core.artifacts import localize
from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.data.images import open_image
from cirray.transforms import ImageTransform, build_transform, stacked
from cirray.types import MAX_TEXT, Composition

ImageSource = str | Path | bytes | Image.Image


class Vision(Protocol):
    """The frozen tower: uint8 pictures `[B, H, W, 3]` in, patch tokens `[B, P, D]` out; `VisionTower` is one."""

    @property
    def digest(self) -> str:
        """Digest of weights, sizes and transform."""

    def __call__(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Patch tokens."""


class ImageTextEncoder:
    """Vectors of composed queries and of images, and their scores: a trained model without any index."""

    def __init__(
        self, encoder: Any, vision: Vision, transform: ImageTransform, device: torch.device | str = "cpu",
        limits: ImageLimits | None = None, source: str = "",
    ) -> None:  # fmt: skip
        """Take parts that are loaded already; `load_encoder()` and `cirray.load()` load them."""
        self.encoder, self.vision, self.transform, self.source = encoder, vision, transform, source
        self.device, self.limits = torch.device(device), limits or ImageLimits()

    @property
    def digest(self) -> str:
        """Digest of the encoder: an index made with another one does not fit."""
        return str(self.encoder.digest)

    @property
    def composition(self) -> Composition:
        """How it makes a query of picture and text, and whether the text's weight can be moved."""
        found: Composition = self.encoder.composition
        return found

    @torch.inference_mode()
    def queries(
        self, images: Sequence[ImageSource], texts: Sequence[str], weights: Sequence[float] | None = None
    ) -> np.ndarray:
        """Query vectors `[B, D]` (float32, norm 1) of references and what to change in them.

        Args:
            images: references.
            texts: what to change, one an image.
            weights: the text's share in each query, 0 to 1; None: the model's own.

        Raises:
            DataError: for an unusable picture or text, lists of different lengths, or weights where the model's
                composition has none.
        """
        if len(images) != len(texts):
            raise DataError(f"{len(images)} images and {len(texts)} texts were given; a query needs one of each.")
        seen = self._pixels(images) if self.encoder.reads_pictures else self._patches(images)
        state, text = self.encoder.encode_reference(seen), self._text(texts)
        if weights is None:
            return self.encoder.compose(state, text).float().cpu().numpy()
        share_B = torch.tensor([check_weight(self.encoder, weight) for weight in weights], dtype=torch.float32)
        return self.encoder.compose_weighted(state, text, share_B).float().cpu().numpy()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Query vectors `[B, D]` (float32, norm 1) of texts alone.

        Raises:
            DataError: for an unusable text, or when the model reads a text only beside a picture.
        """
        return self.encoder.encode_text(self._text(texts)).float().cpu().numpy()

    @torch.inference_mode()
    def images(self, images: Sequence[ImageSource]) -> np.ndarray:
        """Gallery vectors `[N, Q, D]` (float32, norm 1) of images.

        Raises:
            DataError: for an unusable picture.
        """
        return self.encoder.encode_gallery(self._patches(images)).float().cpu().numpy()

    def score(self, query_BD: np.ndarray, gallery_NQD: np.ndarray) -> np.ndarray:
        """Similarities `[B, N]` by the package's one scorer."""
        return self.encoder.score(torch.from_numpy(query_BD), torch.from_numpy(gallery_NQD)).numpy()

    def _text(self, texts: Sequence[str]) -> Any:
        return self.encoder.tokenize([said(self.encoder, text) for text in texts]).to(self.device)

    def _patches(self, images: Sequence[ImageSource]) -> torch.Tensor:
        """Patch tokens, rounded to fp16 as the feature store keeps them."""
        return self.vision(self._pixels(images)).to(torch.float16).float()

    def _pixels(self, images: Sequence[ImageSource]) -> torch.Tensor:
        if not images:
            raise DataError("There is no image to encode. Give at least one.")
        names = ["upload" if isinstance(image, bytes) else None for image in images]
        pixels = [
            self.transform(open_image(image, self.limits, name)) for image, name in zip(images, names, strict=True)
        ]
        return torch.from_numpy(stacked(pixels)).to(self.device)


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """A modification text in NFC with single spaces.

    Raises:
        DataError: when it is empty, longer than `limit` characters, or holds control characters or lone surrogates.
    """
    bad = next((char for char in text if unicodedata.category(char) in ("Cc", "Cs") and not char.isspace()), None)
    if bad is not None:
        raise DataError(f"The text holds the control character U+{ord(bad):04X}. Send plain text.")
    cleaned = " ".join(unicodedata.normalize("NFC", text).split())
    if not cleaned:
        raise DataError("The text is empty. Say what to change, e.g. 'make it blue'.")
    if len(cleaned) > limit:
        raise DataError(f"The text has {len(cleaned):,} characters; at most {limit} are accepted. Shorten it.")
    return cleaned


def said(encoder: Any, text: str) -> str:
    """A clean text that is not empty after the encoder's text processor.

    Raises:
        DataError: as `clean_text`, or when nothing is left.
    """
    cleaned = clean_text(text)
    if not encoder.processed([cleaned])[0].strip():
        raise DataError(
            f"The text {cleaned!r} is empty to this model, which reads no punctuation. Say what to change, e.g. 'make "
            "it blue'."
        )
    return cleaned


def check_weight(encoder: Any, weight: float) -> float:
    """A text's share that an encoder takes.

    Raises:
        DataError: when its composition has none, or for a share outside of 0 to 1.
    """
    composition: Composition = encoder.composition
    if composition.weight is None:
        raise DataError(
            f"This model composes by {composition.name!r}, in which the text has no weight; leave weight out."
        )
    if not 0 <= weight <= 1:
        raise DataError(f"The weight {weight:g} is no share of the text; give 0 (picture alone) to 1 (text alone).")
    return weight


def load_models(checkpoint: str, device: str = "cpu") -> tuple[Any, Any, ImageTransform]:
    """Encoder, vision tower and image transform of a checkpoint, in evaluation mode on a device.

    Raises:
        ArtifactError: the checkpoint is missing, half-written, or holds no vision tower.
    """
    found = load_checkpoint(checkpoint, device)
    return found.encoder, found.vision, found.transform


def load_checkpoint(checkpoint: str, device: str = "cpu") -> ImageTextEncoder:
    """What `load_models` gives, as one object."""
    return load_encoder(localize(checkpoint, "checkpoint") / "model", device)


def load_encoder(folder: Path, device: str = "cpu") -> ImageTextEncoder:
    """Encoder, vision tower and image transform of a model folder, in evaluation mode on a device.

    Raises:
        ArtifactError: the folder holds no retriever or no vision tower.
    """
    from cirray.models.retriever_files import load_retriever
    from cirray.models.towers.hf_blip2 import load_vision_tower

    vision = load_vision_tower(folder / "vision").to(device)
    retriever = load_retriever(folder, device)
    return ImageTextEncoder(retriever, vision, build_transform(vision.transform), device, source=str(folder))


def open_encoder(source: str, device: str = "cpu", composition: str = "", weight: float | None = None) -> Any:
    """Encoder, vision tower and image transform of published weights, a checkpoint or an export; see `cirray.load`.

    Raises:
        ArtifactError: when nothing readable is there.
        ConfigError: for a composition that the model does not know.
    """
    from cirray.models.opening import open_published, own_source, recomposed

    if (own := own_source(source)) is not None:
        found = load_encoder(own[0], device)
        found.encoder, found.source = recomposed(found.encoder, composition, weight).to(device), source
        return found
    retriever, vision = open_published(source, composition, weight)
    transform = build_transform(vision.transform)
    return ImageTextEncoder(retriever.to(device), vision.to(device), transform, device, source=source)
