"""Composed image retrieval in one process: encode the query, search the index, leave the reference out. No ray.

Shapes: B queries, P patches, D width, N gallery, K answers, H and W pixels.
"""

import hashlib
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from cirray.core.artifacts import localize
from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.data.images import open_image
from cirray.index.store import GalleryIndex, open_index
from cirray.models.states import ReferenceStates
from cirray.transforms import ImageTransform, build_transform
from cirray.types import MAX_TEXT, Ranking, StepTimes

ImageSource = str | Path | bytes | Image.Image


class QueryEncoder(Protocol):
    """What the retriever asks of a model; `QFormerRetriever` is one."""

    @property
    def digest(self) -> str:
        """Digest of the weights and sizes."""

    def processed(self, texts: Sequence[str]) -> list[str]:
        """Texts as the encoder's tokenizer gets them."""

    def tokenize(self, texts: Sequence[str]) -> Any:
        """Texts as a batch of token ids."""

    def encode_reference(self, patches_BPD: torch.Tensor) -> Any:
        """State of the reference images, independent of the text."""

    def compose(self, state: Any, text: Any) -> torch.Tensor:
        """Normalised query vectors `[B, D]`."""


class Vision(Protocol):
    """The frozen tower: uint8 pictures `[B, H, W, 3]` in, patch tokens `[B, P, D]` out; `VisionTower` is one."""

    @property
    def digest(self) -> str:
        """Digest of weights, sizes and transform."""

    def __call__(self, images_BHWC: torch.Tensor) -> torch.Tensor:
        """Patch tokens."""


@dataclass(frozen=True)
class ComposedQuery:
    """A checked query. Exactly one of `gallery_id` and `pixels_HWC` (uint8, transformed) is the reference."""

    text: str
    gallery_id: str | None = None
    pixels_HWC: np.ndarray | None = None
    k: int = 10
    exclude_reference: bool = True
    query_id: str = ""
    decode_ms: float = 0.0


class SearchEngine:
    """Searches a gallery by a reference image and a text that says what to change."""

    def __init__(
        self, encoder: QueryEncoder, vision: Vision, transform: ImageTransform, gallery: GalleryIndex,
        device: torch.device | str = "cpu", limits: ImageLimits | None = None, kept_references: int = 0,
    ) -> None:  # fmt: skip
        """Take parts that are loaded already; `open()` loads them from artifacts."""
        self.encoder, self.vision, self.transform, self.gallery = encoder, vision, transform, gallery
        self.device, self.limits = torch.device(device), limits or ImageLimits()
        bound = getattr(encoder, "state_depends_on_text", False)
        self._states = ReferenceStates(encoder, kept_references) if kept_references and not bound else None

    @classmethod
    def open(
        cls, checkpoint: str, index: str, device: str = "cpu", verify: bool = True, limits: ImageLimits | None = None,
        kept_references: int = 0,
    ) -> "SearchEngine":  # fmt: skip
        """Load a checkpoint (model and its vision tower) and an index.

        Args:
            checkpoint: URI of a `checkpoint` artifact.
            index: URI of an `index` artifact built with it.
            device: where the models run.
            verify: compare the index files with their digests before they are read.
            limits: caps on reference images.
            kept_references: how many of the latest reference images stay encoded for further texts, if the encoding
                does not depend on the text; 0: none. One thread at a time.

        Raises:
            ArtifactError: an artifact is missing, half-written or damaged.
            IndexMismatchError: the index was built by another encoder.
        """
        encoder, vision, transform = load_models(checkpoint, device)
        gallery = open_index(index, encoder.index_digests, verify, vision.digest)
        return cls(encoder, vision, transform, gallery, device, limits, kept_references)

    def prepare(
        self, text: str, image: ImageSource | None = None, gallery_id: str | None = None, k: int = 10,
        exclude_reference: bool = True, query_id: str = "",
    ) -> ComposedQuery:  # fmt: skip
        """Check and decode one query (CPU work, no model).

        Args:
            text: what to change, 1 to 512 characters.
            image: path or encoded bytes of the reference, or
            gallery_id: id of a gallery image as the reference.
            k: answers wanted, at least 1.
            exclude_reference: leave a reference picked from the gallery out of its own answers.
            query_id: name of the query in the ranking.

        Raises:
            DataError: for a text that is empty (also to this encoder) or overlong, an unusable picture, an unknown id,
                both or no reference.
        """
        if (image is None) == (gallery_id is None):
            given = "both" if image is not None else "neither"
            raise DataError(f"A query needs one reference: an image or a gallery id; {given} was given.")
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 answer.")
        query = ComposedQuery(said(self.encoder, text), gallery_id, None, k, exclude_reference, query_id)
        if gallery_id is not None and self.gallery.patches_NPW is not None:
            self.gallery.row(gallery_id)
            return query
        begin = time.perf_counter()
        source = image if image is not None else self._thumbnail(str(gallery_id))
        name = "upload" if isinstance(source, bytes) else None
        pixels_HWC = self.transform(open_image(source, self.limits, name))
        return replace(query, pixels_HWC=pixels_HWC, decode_ms=1000 * (time.perf_counter() - begin))

    def search(
        self, text: str, image: ImageSource | None = None, gallery_id: str | None = None, k: int = 10,
        exclude_reference: bool = True, query_id: str = "",
    ) -> Ranking:  # fmt: skip
        """Answer one query; arguments and errors as in `prepare`."""
        answer = self.search_many([self.prepare(text, image, gallery_id, k, exclude_reference, query_id)])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def search_many(self, queries: Sequence[ComposedQuery]) -> list[Ranking | Exception]:
        """Answer several queries with one pass through the model; a query that fails is a value, not an exception.

        Returns:
            One ranking or error a query, in order.
        """
        if not queries:
            return []
        try:
            return list(self._rankings(queries))
        except Exception as error:  # noqa: BLE001 - handed to the query it belongs to; its neighbours are answered
            if len(queries) == 1:
                return [error]
        return [answer for query in queries for answer in self.search_many([query])]

    @torch.inference_mode()
    def encode(self, queries: Sequence[ComposedQuery]) -> np.ndarray:
        """Query vectors `[B, D]` (float32), normalised."""
        return self._compose(self._references(queries), queries)

    def probe(self) -> None:
        """Run one query through all steps, as a health check does.

        Raises:
            CirrayError: or what a broken model or index raises.
        """
        answer = self.search_many([self._probe_query()])[0]
        if isinstance(answer, Exception):
            raise answer

    @torch.inference_mode()
    def _rankings(self, queries: Sequence[ComposedQuery]) -> list[Ranking]:
        """Rankings with the times of the three steps that the queries share."""
        wanted = max(query.k + int(query.exclude_reference) for query in queries)
        marks = [self._now()]
        state = self._references(queries)
        marks.append(self._now())
        vectors_BD = self._compose(state, queries)
        marks.append(self._now())
        ids, scores_BK = self.gallery.search_index.search(vectors_BD, wanted)
        marks.append(self._now())
        image, text, rank = (1000 * (end - begin) for begin, end in pairwise(marks))
        return [
            _ranking(query, names, scores_K, StepTimes(query.decode_ms, image, text, rank))
            for query, names, scores_K in zip(queries, ids, scores_BK, strict=True)
        ]

    def _compose(self, state: Any, queries: Sequence[ComposedQuery]) -> np.ndarray:
        text = self.encoder.tokenize([said(self.encoder, query.text) for query in queries]).to(self.device)
        return self.encoder.compose(state, text).float().cpu().numpy()

    def _now(self) -> float:
        """The time in seconds, once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _references(self, queries: Sequence[ComposedQuery]) -> Any:
        """States of the references; the tower reads only images whose state is not kept."""
        if self._states is None:
            return self.encoder.encode_reference(self._patches(queries))
        keys = [_reference_key(query) for query in queries]
        return self._states.get(keys, lambda places: self._patches([queries[place] for place in places]))

    def _patches(self, queries: Sequence[ComposedQuery]) -> torch.Tensor:
        """Patch tokens of the references, rounded to fp16 as the feature store keeps them."""
        fresh = [query.pixels_HWC for query in queries if query.pixels_HWC is not None]
        encoded: list[torch.Tensor] = []
        if fresh:
            images_BHWC = torch.from_numpy(np.stack(fresh)).to(self.device)
            encoded = list(self.vision(images_BHWC).to(torch.float16))
        return torch.stack(
            [encoded.pop(0) if query.pixels_HWC is not None else self._stored(query) for query in queries]
        ).float()

    def _stored(self, query: ComposedQuery) -> torch.Tensor:
        if self.gallery.patches_NPW is None or query.gallery_id is None:
            raise DataError("A query by gallery id must be made with prepare(): this index keeps no vision features.")
        row = self.gallery.row(query.gallery_id)
        return torch.from_numpy(np.array(self.gallery.patches_NPW[row])).to(self.device)

    def _thumbnail(self, gallery_id: str) -> bytes:
        picture = self.gallery.picture(gallery_id)
        if not picture:
            raise DataError(
                f"The index keeps neither vision features nor a picture of {gallery_id!r}, so it cannot be a "
                "reference by id. Send the image, or build the index with pictures."
            )
        return picture

    def _probe_query(self) -> ComposedQuery:
        size = self.transform.size
        return ComposedQuery("probe", pixels_HWC=np.full((size, size, 3), 127, np.uint8), k=1)


def _reference_key(query: ComposedQuery) -> str:
    """Equal for equal reference images: the gallery's own patches by id, a picture by its transformed pixels."""
    if query.pixels_HWC is None:
        return f"gallery {query.gallery_id}"
    content = hashlib.blake2b(np.ascontiguousarray(query.pixels_HWC).tobytes(), digest_size=16)
    return f"pixels {query.pixels_HWC.shape} {content.hexdigest()}"


class ImageTextEncoder:
    """Vectors of composed queries and of images, and their scores: a trained model without any index."""

    def __init__(
        self, encoder: Any, vision: Vision, transform: ImageTransform, device: torch.device | str = "cpu",
        limits: ImageLimits | None = None,
    ) -> None:  # fmt: skip
        """Take parts that are loaded already; `load_encoder()` and `cirray.load()` load them."""
        self.encoder, self.vision, self.transform = encoder, vision, transform
        self.device, self.limits = torch.device(device), limits or ImageLimits()

    @property
    def digest(self) -> str:
        """Digest of the encoder: an index made with another one does not fit."""
        return str(self.encoder.digest)

    @torch.inference_mode()
    def queries(self, images: Sequence[ImageSource], texts: Sequence[str]) -> np.ndarray:
        """Query vectors `[B, D]` (float32, norm 1) of references and what to change in them.

        Raises:
            DataError: for an unusable picture or text, or lists of different lengths.
        """
        if len(images) != len(texts):
            raise DataError(f"{len(images)} images and {len(texts)} texts were given; a query needs one of each.")
        text = self.encoder.tokenize([said(self.encoder, text) for text in texts]).to(self.device)
        query_BD = self.encoder.compose(self.encoder.encode_reference(self._patches(images)), text)
        return query_BD.float().cpu().numpy()

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

    def _patches(self, images: Sequence[ImageSource]) -> torch.Tensor:
        """Patch tokens, rounded to fp16 as the feature store keeps them."""
        if not images:
            raise DataError("There is no image to encode. Give at least one.")
        names = ["upload" if isinstance(image, bytes) else None for image in images]
        pixels = [
            self.transform(open_image(image, self.limits, name)) for image, name in zip(images, names, strict=True)
        ]
        return self.vision(torch.from_numpy(np.stack(pixels)).to(self.device)).to(torch.float16).float()


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


def said(encoder: QueryEncoder, text: str) -> str:
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


def load_models(checkpoint: str, device: str = "cpu") -> tuple[Any, Any, ImageTransform]:
    """Encoder, vision tower and image transform of a checkpoint, in evaluation mode on a device.

    Raises:
        ArtifactError: the checkpoint is missing, half-written, or holds no vision tower.
    """
    found = load_encoder(localize(checkpoint, "checkpoint") / "model", device)
    return found.encoder, found.vision, found.transform


def load_encoder(folder: Path, device: str = "cpu") -> ImageTextEncoder:
    """Encoder, vision tower and image transform of a model folder, in evaluation mode on a device.

    Raises:
        ArtifactError: the folder holds no retriever or no vision tower.
    """
    from cirray.models.retriever_files import load_retriever
    from cirray.models.towers.hf_blip2 import load_vision_tower

    vision = load_vision_tower(folder / "vision").to(device)
    return ImageTextEncoder(load_retriever(folder, device), vision, build_transform(vision.transform), device)


def _ranking(query: ComposedQuery, names: tuple[str, ...], scores_K: np.ndarray, times: StepTimes) -> Ranking:
    dropped = query.gallery_id if query.exclude_reference else None
    kept = [(name, float(score)) for name, score in zip(names, scores_K, strict=False) if name != dropped][: query.k]
    return Ranking(query.query_id, tuple(name for name, _ in kept), tuple(score for _, score in kept), times)
