"""Composed image retrieval in one process: encode the query, search the index, leave the reference out. No ray.

Shapes: B queries, P patches, D width, N gallery, K answers, H and W pixels.
"""

import hashlib
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from cirray.catalogue.opening import open_gallery
from cirray.catalogue.source import Source
from cirray.core.errors import DataError
from cirray.data.config import ImageLimits
from cirray.generators.rerankers.base import Asked, Listed, Reranking
from cirray.generators.rerankers.config import RerankChoice
from cirray.image_text import ImageSource, Vision, check_weight, load_models, said
from cirray.index.shards import WHOLE, Shard
from cirray.index.store import GalleryIndex
from cirray.models.states import ReferenceStates
from cirray.queries import PLAIN, ComposedQuery, Further, Negative, Reference, Term, references_of
from cirray.query_pictures import GallerySights, picture_of
from cirray.transforms import ImageTransform, stacked
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


class SearchEngine:
    """Searches a gallery by a reference image and a text that says what to change."""

    def __init__(
        self, encoder: QueryEncoder, vision: Vision, transform: ImageTransform, gallery: GalleryIndex | Source,
        device: torch.device | str = "cpu", limits: ImageLimits | None = None, kept_references: int = 0,
        rerank: RerankChoice | None = None,
    ) -> None:  # fmt: skip
        """Take parts that are loaded already; `open()` loads them from artifacts."""
        self.encoder, self.vision, self.transform, self._gallery = encoder, vision, transform, gallery
        self.device, self.limits = torch.device(device), limits or ImageLimits()
        bound = getattr(encoder, "state_depends_on_text", False)
        self._reads_pictures = bool(getattr(encoder, "reads_pictures", False))
        self._rerank = Reranking(rerank, encoder, str(device)) if rerank else None
        self._states = ReferenceStates(encoder, kept_references) if kept_references and not bound else None

    @property
    def gallery(self) -> GalleryIndex:
        """The gallery as it is now. Whoever asks several things of it keeps it meanwhile."""
        return self._gallery if isinstance(self._gallery, GalleryIndex) else self._gallery.gallery

    @property
    def follower(self) -> Source | None:
        """What keeps a gallery up to date that changes, or lies in several searchers; None for an index."""
        return None if isinstance(self._gallery, GalleryIndex) else self._gallery

    @property
    def living(self) -> bool:
        """Whether the gallery is written to."""
        return self.follower is not None and self.follower.living

    @property
    def composition(self) -> Composition:
        """How the model makes a query of picture and text, and whether the text's weight can be moved."""
        return self.encoder.composition

    @property
    def shapes(self) -> tuple[str, ...]:
        """The shapes of query that this model can do, by their names in `/version`."""
        shapes = ["picture and text", "picture", "references", "box", "not a picture"]
        if getattr(self.encoder, "reads_text_alone", True):
            shapes += ["text", "not a text"]
        return tuple(shapes + (["weight"] if self.composition.weight is not None else []))

    @property
    def reranks(self) -> bool:
        """Whether answers are scored again, which may take long, and wait for another server."""
        return self._rerank is not None

    @property
    def references(self) -> tuple[int, int]:
        """How many reference images were kept from an earlier search, and how many were encoded."""
        return self._states.counts if self._states else (0, 0)

    @classmethod
    def open(
        cls, checkpoint: str, index: str, device: str = "cpu", verify: bool = True, limits: ImageLimits | None = None,
        kept_references: int = 0, rerank: RerankChoice | None = None, shard: Shard = WHOLE,
    ) -> "SearchEngine":  # fmt: skip
        """Load a checkpoint (model and its vision tower), and an index or a gallery that is written to.

        Args:
            checkpoint: URI of a `checkpoint` artifact.
            index: URI of an `index` or `gallery` artifact built with it.
            device: where the models run.
            verify: compare the index files with their digests before they are read.
            limits: caps on reference images.
            kept_references: how many of the latest reference images stay encoded for further texts, if the encoding
                does not depend on the text; 0: none. One thread at a time.
            rerank: what scores the first answers of every query again.
            shard: which of the gallery's images.

        Raises:
            ArtifactError: an artifact is missing, half-written or damaged.
            IndexMismatchError: the index was built by another encoder.
            ConfigError: the model lacks what the reranker needs.
            GenerationError: no server answers the reranker.
        """
        encoder, vision, transform = load_models(checkpoint, device)
        gallery = open_gallery(index, encoder.index_digests, verify, vision.digest, shard)
        return cls(encoder, vision, transform, gallery, device, limits, kept_references, rerank)

    def prepare(
        self, text: str | None = None, image: ImageSource | None = None, gallery_id: str | None = None, k: int = 10,
        exclude_reference: bool = True, query_id: str = "", weight: float | None = None, further: Further = PLAIN,
    ) -> ComposedQuery:  # fmt: skip
        """Check and decode one query (CPU work, no model).

        Args:
            text: what to change, 1 to 512 characters; without a reference, what is looked for; None: the reference is
                searched alone.
            image: path or encoded bytes of the reference, or
            gallery_id: id of a gallery image as the reference.
            k: answers wanted, at least 1.
            exclude_reference: leave references picked from the gallery out of their own answers.
            query_id: name of the query in the ranking.
            weight: the text's share, 0 (picture alone) to 1 (text alone); None: the model's own.
            further: several references, a box, what is not wanted, a filter, ...

        Raises:
            DataError: for a text that is empty (also to this encoder) or overlong, an unusable picture, an unknown id,
                too many references or nothing to search by, a shape of query that this model has not, or a number or
                filter that cannot be used.
        """
        further.check(k)
        references = references_of(image, gallery_id, further)
        if not references and text is None:
            raise DataError("There is nothing to search by; give an image, a gallery id or a text.")
        gallery = self.gallery
        share = None if weight is None else check_weight(self.encoder, weight)
        words = None if text is None else said(self.encoder, text)
        if words is not None and not references:
            self._check_text_alone("give a picture beside the text")
        terms = [Term(text=words, share=share)] if not references else []
        begin = time.perf_counter()
        whole = sum(reference.weight for reference in references)
        terms += [self._term(item, gallery, item.weight / whole, words, share) for item in references]
        terms += self._unwanted(further.negative, gallery)
        decoded = any(term.pixels_HWC is not None for term in terms)
        decode_ms = 1000 * (time.perf_counter() - begin) if decoded else 0.0
        named = {term.gallery_id for term in terms if term.gallery_id is not None and exclude_reference}
        allowed = gallery.allowed(further.filter) if further.filter is not None else None
        dropped = frozenset(named | set(further.exclude))
        return ComposedQuery(tuple(terms), k, further.offset, dropped, allowed, query_id, decode_ms, gallery)

    def _term(
        self, picture: Reference, gallery: GalleryIndex, factor: float, text: str | None = None,
        share: float | None = None,
    ) -> Term:  # fmt: skip
        """The vector of a picture, with a text or alone."""
        if (picture.image is None) == (picture.gallery_id is None):
            raise DataError("A picture of a query is an image or a gallery id, one of them.")
        stored = gallery.keeps_patches and not self._reads_pictures
        if picture.gallery_id is not None and picture.box is None and stored:
            gallery.check(picture.gallery_id)
            return Term(factor, text, picture.gallery_id, None, share)
        whole = self._reads_pictures
        image = picture_of(picture.image, picture.gallery_id, picture.box, gallery, self.limits, whole)
        pixels_HWC = self.transform(image)
        shown = image if self._rerank else None
        return Term(factor, text, picture.gallery_id, pixels_HWC, share, shown)

    def _unwanted(self, negative: Negative | None, gallery: GalleryIndex) -> list[Term]:
        if negative is None:
            return []
        if (negative.text is None) == (negative.picture is None):
            raise DataError("What is not wanted is a text or a picture, one of them.")
        if negative.picture is not None:
            return [self._term(negative.picture, gallery, -negative.weight)]
        self._check_text_alone("say what is not wanted by a picture")
        return [Term(-negative.weight, said(self.encoder, negative.text or ""))]

    def _check_text_alone(self, remedy: str) -> None:
        if "text" not in self.shapes:
            raise DataError(
                f"This model ({self.composition.name!r}) reads a text only beside a picture; {remedy}. It can do: "
                f"{', '.join(self.shapes)}."
            )

    def search(
        self, text: str | None = None, image: ImageSource | None = None, gallery_id: str | None = None, k: int = 10,
        exclude_reference: bool = True, query_id: str = "", weight: float | None = None, further: Further = PLAIN,
    ) -> Ranking:  # fmt: skip
        """Answer one query; arguments and errors as in `prepare`."""
        query = self.prepare(text, image, gallery_id, k, exclude_reference, query_id, weight, further)
        answer = self.search_many([query])[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def search_many(self, queries: Sequence[ComposedQuery]) -> list[Ranking | Exception]:
        """Answer several queries with one pass through the model for each kind of term; a query that fails is a value,
        not an exception.

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

    def encode(self, queries: Sequence[ComposedQuery]) -> np.ndarray:
        """Query vectors `[B, D]` (float32), normalised."""
        return self._vectors(queries)[0]

    def probe(self) -> None:
        """Run one query through all steps, as a health check does.

        Raises:
            CirrayError: or what a broken model or index raises.
        """
        answer = self.search_many([self._probe_query()])[0]
        if isinstance(answer, Exception):
            raise answer

    def _rankings(self, queries: Sequence[ComposedQuery]) -> list[Ranking]:
        """Rankings with the times of the steps that the queries share."""
        vectors_BD, image_ms, text_ms = self._vectors(queries)
        begin = self._now()
        found: dict[int, tuple[tuple[str, ...], np.ndarray]] = {}
        shares: dict[int, float] = {}
        for gallery, places in self._by_gallery(queries):
            wanted = max(queries[place].wanted(self._rerank.top if self._rerank else 0) for place in places)
            allowed = [queries[place].allowed for place in places]
            ids, scores_BK, share = gallery.search(vectors_BD[places], wanted, allowed)
            found |= zip(places, zip(ids, scores_BK, strict=True), strict=True)
            shares |= dict.fromkeys(places, share)
        lists: list[Listed] = [query.left(*found[place]) for place, query in enumerate(queries)]
        ranked = self._now()
        rank_ms, rerank_ms = 1000 * (ranked - begin), 0.0
        if self._rerank:
            lists = self._rerank.ordered([self._asked(*pair) for pair in zip(queries, lists, strict=True)], lists)
            rerank_ms = 1000 * (self._now() - ranked)
        return [
            query.ranking(left, StepTimes(query.decode_ms, image_ms, text_ms, rank_ms, rerank_ms), shares[place])
            for place, (query, left) in enumerate(zip(queries, lists, strict=True))
        ]

    def _asked(self, query: ComposedQuery, left: Listed) -> Asked:
        """What a reranker is asked of the first answers."""
        assert self._rerank is not None
        gallery = query.gallery or self.gallery
        ids, scores = (tuple(column) for column in zip(*left[: self._rerank.top], strict=True)) if left else ((), ())
        sights = GallerySights(gallery, self.vision, self.transform, self.device, self.limits)
        return Asked(query.text, ids, scores, sights, query.reference)

    def _by_gallery(self, queries: Sequence[ComposedQuery]) -> list[tuple[GalleryIndex, list[int]]]:
        """Every gallery that is searched, with the places of its queries."""
        galleries = [query.gallery or self.gallery for query in queries]
        groups: dict[int, list[int]] = {}
        for place, gallery in enumerate(galleries):
            groups.setdefault(id(gallery), []).append(place)
        return [(galleries[places[0]], places) for places in groups.values()]

    @torch.inference_mode()
    def _vectors(self, queries: Sequence[ComposedQuery]) -> tuple[np.ndarray, float, float]:
        """Query vectors `[B, D]`, and the milliseconds of pictures and of texts."""
        terms = [(term, query.gallery or self.gallery) for query in queries for term in query.terms]
        vectors: dict[int, np.ndarray] = {}
        image_ms = text_ms = 0.0
        for parts in dict.fromkeys(term.parts for term, _ in terms):
            places = [place for place, (term, _) in enumerate(terms) if term.parts == parts]
            marks = [self._now()]
            state = self._references([terms[place] for place in places])
            marks.append(self._now())
            vectors |= zip(places, self._compose(state, [terms[place][0] for place in places]), strict=True)
            marks.append(self._now())
            image, text = (1000 * (end - begin) for begin, end in pairwise(marks))
            image_ms, text_ms = image_ms + image, text_ms + text
        every = iter([vectors[place] for place in range(len(terms))])
        return np.stack([query.vector([next(every) for _ in query.terms]) for query in queries]), image_ms, text_ms

    def _compose(self, state: Any, terms: Sequence[Term]) -> np.ndarray:
        parts = terms[0].parts
        if parts == "picture":
            return self.encoder.encode_picture(state).float().cpu().numpy()
        text = self.encoder.tokenize([said(self.encoder, term.text or "") for term in terms]).to(self.device)
        if parts == "text":
            return self.encoder.encode_text(text).float().cpu().numpy()
        weights = [term.share for term in terms]
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

    def _references(self, terms: Sequence[tuple[Term, GalleryIndex]]) -> Any:
        """States of the references (of pictures alone their patches); the tower reads only images that are not kept."""
        parts = terms[0][0].parts
        if parts != "text" and self._reads_pictures:
            return self._pixels(terms)
        if parts != "both":
            return self._patches(terms) if parts == "picture" else None
        if self._states is None:
            return self.encoder.encode_reference(self._patches(terms))
        keys = [_reference_key(term) for term, _ in terms]
        return self._states.get(keys, lambda places: self._patches([terms[place] for place in places]))

    def _patches(self, terms: Sequence[tuple[Term, GalleryIndex]]) -> torch.Tensor:
        """Patch tokens of the pictures, rounded to fp16 as the feature store keeps them."""
        encoded: list[torch.Tensor] = []
        if any(term.pixels_HWC is not None for term, _ in terms):
            encoded = list(self.vision(self._pixels(terms)).to(torch.float16))
        stored = self._stored(terms)
        return torch.stack([(stored if term.pixels_HWC is None else encoded).pop(0) for term, _ in terms]).float()

    def _pixels(self, terms: Sequence[tuple[Term, GalleryIndex]]) -> torch.Tensor:
        fresh = [term.pixels_HWC for term, _ in terms if term.pixels_HWC is not None]
        return torch.from_numpy(stacked(fresh)).to(self.device)

    def _stored(self, terms: Sequence[tuple[Term, GalleryIndex]]) -> list[torch.Tensor]:
        """Patches of the references that galleries keep."""
        named = [(term.gallery_id, gallery) for term, gallery in terms if term.pixels_HWC is None]
        found: dict[int, torch.Tensor] = {}
        for held in {id(gallery): gallery for _, gallery in named}.values():
            places = [place for place, (_, gallery) in enumerate(named) if gallery is held]
            names = [name for name, gallery in named if gallery is held and name is not None]
            if not held.keeps_patches or len(names) < len(places):
                raise DataError(
                    "A query by gallery id must be made with prepare(): this index keeps no vision features."
                )
            found |= zip(places, torch.from_numpy(np.array(held.patches(names))).to(self.device), strict=True)
        return [found[place] for place in range(len(named))]

    def _probe_query(self) -> ComposedQuery:
        grey = Image.new("RGB", (self.transform.size, self.transform.size), "grey")
        return ComposedQuery((Term(text="probe", pixels_HWC=self.transform(grey)),), k=1)


def _reference_key(term: Term) -> str:
    """Equal for equal reference images: the gallery's own patches by id, a picture by its transformed pixels."""
    if term.pixels_HWC is None:
        return f"gallery {term.gallery_id}"
    content = hashlib.blake2b(np.ascontiguousarray(term.pixels_HWC).tobytes(), digest_size=16)
    return f"pixels {term.pixels_HWC.shape} {content.hexdigest()}"
