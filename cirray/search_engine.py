"""Composed image retrieval in one process: encode the query, search the index, leave the reference out. No ray.

Shapes: B queries, P patches, D width, N gallery, K answers, H and W pixels.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch

from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.data.images import open_image
from cirray.image_text import ImageSource, Vision, check_weight, load_models, said
from cirray.index.store import GalleryIndex, open_index
from cirray.models.states import ReferenceStates
from cirray.transforms import ImageTransform
from cirray.types import Composition, Ranking, StepTimes


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

    @property
    def composition(self) -> Composition:
        """How picture and text become a query."""

    def compose_weighted(self, state: Any, text: Any, share_B: torch.Tensor) -> torch.Tensor:
        """As `compose`, with the text's share of each query."""

    def encode_text(self, text: Any) -> torch.Tensor:
        """Normalised query vectors `[B, D]` of texts alone."""

    def encode_picture(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Normalised query vectors `[B, D]` of pictures alone."""


@dataclass(frozen=True)
class ComposedQuery:
    """A checked query. `gallery_id` or `pixels_HWC` (uint8, transformed) is the reference; without one the text is
    searched alone, and without a text the reference.
    """

    text: str | None
    gallery_id: str | None = None
    pixels_HWC: np.ndarray | None = None
    k: int = 10
    exclude_reference: bool = True
    query_id: str = ""
    decode_ms: float = 0.0
    weight: float | None = None
    """The text's share, 0 to 1; None: the model's own."""

    @property
    def parts(self) -> str:
        """What is asked: `both`, `text` or `picture`."""
        if self.text is None:
            return "picture"
        return "text" if self.gallery_id is None and self.pixels_HWC is None else "both"


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

    @property
    def composition(self) -> Composition:
        """How the model makes a query of picture and text, and whether the text's weight can be moved."""
        return self.encoder.composition

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
        self, text: str | None = None, image: ImageSource | None = None, gallery_id: str | None = None, k: int = 10,
        exclude_reference: bool = True, query_id: str = "", weight: float | None = None,
    ) -> ComposedQuery:  # fmt: skip
        """Check and decode one query (CPU work, no model).

        Args:
            text: what to change, 1 to 512 characters; without a reference, what is looked for; None: the reference is
                searched alone.
            image: path or encoded bytes of the reference, or
            gallery_id: id of a gallery image as the reference.
            k: answers wanted, at least 1.
            exclude_reference: leave a reference picked from the gallery out of its own answers.
            query_id: name of the query in the ranking.
            weight: the text's share, 0 (picture alone) to 1 (text alone); None: the model's own.

        Raises:
            DataError: for a text that is empty (also to this encoder) or overlong, an unusable picture, an unknown id,
                two references or nothing to search by, or a weight where the model's composition has none.
        """
        if image is not None and gallery_id is not None:
            raise DataError("A query has one reference, an image or a gallery id; both were given.")
        if image is None and gallery_id is None and text is None:
            raise DataError("There is nothing to search by; give an image, a gallery id or a text.")
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 answer.")
        share = None if weight is None else check_weight(self.encoder, weight)
        words = None if text is None else said(self.encoder, text)
        query = ComposedQuery(words, gallery_id, None, k, exclude_reference, query_id, weight=share)
        if image is None and gallery_id is None:
            return query
        if gallery_id is not None and self.gallery.patches_NPW is not None:
            self.gallery.row(gallery_id)
            return query
        begin = time.perf_counter()
        source = image if image is not None else self._thumbnail(str(gallery_id))
        name = "upload" if isinstance(source, bytes) else None
        pixels_HWC = self.transform(open_image(source, self.limits, name))
        return replace(query, pixels_HWC=pixels_HWC, decode_ms=1000 * (time.perf_counter() - begin))

    def search(
        self, text: str | None = None, image: ImageSource | None = None, gallery_id: str | None = None, k: int = 10,
        exclude_reference: bool = True, query_id: str = "", weight: float | None = None,
    ) -> Ranking:  # fmt: skip
        """Answer one query; arguments and errors as in `prepare`."""
        answer = self.search_many([self.prepare(text, image, gallery_id, k, exclude_reference, query_id, weight)])[0]
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
        if len({query.parts for query in queries}) > 1:
            return self._by_parts(queries)
        try:
            return list(self._rankings(queries))
        except Exception as error:  # noqa: BLE001 - handed to the query it belongs to; its neighbours are answered
            if len(queries) == 1:
                return [error]
        return [answer for query in queries for answer in self.search_many([query])]

    def _by_parts(self, queries: Sequence[ComposedQuery]) -> list[Ranking | Exception]:
        """Answers in order, with one pass a kind of query."""
        answers: dict[int, Ranking | Exception] = {}
        for parts in dict.fromkeys(query.parts for query in queries):
            places = [place for place, query in enumerate(queries) if query.parts == parts]
            answers |= zip(places, self.search_many([queries[place] for place in places]), strict=True)
        return [answers[place] for place in range(len(queries))]

    @torch.inference_mode()
    def encode(self, queries: Sequence[ComposedQuery]) -> np.ndarray:
        """Query vectors `[B, D]` (float32), normalised, of queries with the same `parts`."""
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
        parts = queries[0].parts
        if parts == "picture":
            return self.encoder.encode_picture(state).float().cpu().numpy()
        text = self.encoder.tokenize([said(self.encoder, query.text or "") for query in queries]).to(self.device)
        if parts == "text":
            return self.encoder.encode_text(text).float().cpu().numpy()
        weights = [query.weight for query in queries]
        if all(weight is None for weight in weights):
            return self.encoder.compose(state, text).float().cpu().numpy()
        usual = self.encoder.composition.weight
        share_B = torch.tensor([usual if weight is None else weight for weight in weights], dtype=torch.float32)
        return self.encoder.compose_weighted(state, text, share_B).float().cpu().numpy()

    def _now(self) -> float:
        """The time in seconds, once the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _references(self, queries: Sequence[ComposedQuery]) -> Any:
        """States of the references (of pictures alone their patches); the tower reads only images that are not kept."""
        if queries[0].parts != "both":
            return self._patches(queries) if queries[0].parts == "picture" else None
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


def _ranking(query: ComposedQuery, names: tuple[str, ...], scores_K: np.ndarray, times: StepTimes) -> Ranking:
    dropped = query.gallery_id if query.exclude_reference else None
    kept = [(name, float(score)) for name, score in zip(names, scores_K, strict=False) if name != dropped][: query.k]
    return Ranking(query.query_id, tuple(name for name, _ in kept), tuple(score for _, score in kept), times)
