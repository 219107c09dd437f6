"""What Ray Data's workers run: plain classes and functions from columns to columns, callable without a cluster."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cirray.core import storage
from cirray.core.artifacts import is_complete, localize
from cirray.core.errors import ArtifactError, DataError
from cirray.data.config import ImageLimits, TransformConfig
from cirray.data.images import open_image, picture_digest, read_place
from cirray.data.places import Place
from cirray.data.transforms import build_transform
from cirray.features.shards import FeatureShardWriter
from cirray.features.store import FeatureStore
from cirray.generators.base import ModificationGenerator
from cirray.pipelines.cluster.streaming import Columns, check_shared, whole_part
from cirray.triplets.schema import rejected_table, triplet_id, triplet_table
from cirray.triplets.store import write_part
from cirray.types import Generation, Pair

GeneratorLoader = Callable[..., ModificationGenerator]
"""(local folder of a generator, **options) -> the generator; `cirray.generators.store.load_generator` is one."""


def decode_images(columns: Columns, transform: Mapping[str, Any], limits: Mapping[str, Any]) -> Columns:
    """Read and decode images, once.

    Args:
        columns: `part`, `part_rows`, `image_id`, `place` (what `Place.text` wrote).
        transform: fields of a `TransformConfig`.
        limits: fields of an `ImageLimits`.

    Returns:
        The columns with `pixels` (uint8 [n, S, S, 3], zeros where there is an error), `error` (a reason, or empty) and
        `content` (`picture_digest` of the file, empty where there is none to read) in place of `place`.
    """
    build, caps = build_transform(TransformConfig(**transform)), ImageLimits(**limits)
    pixels_NHWC = np.zeros((len(columns["part"]), build.size, build.size, 3), dtype=np.uint8)
    errors, contents = (np.full(len(pixels_NHWC), "", dtype=object) for _ in range(2))
    for row, (image_id, text) in enumerate(zip(columns["image_id"], columns["place"], strict=True)):
        place = Place.parse(str(text))
        name = place.name(str(image_id))
        try:
            data = read_place(place, caps, name)
            contents[row] = picture_digest(data)
            pixels_NHWC[row] = build(open_image(data, caps, name, place.box))
        except DataError as error:
            errors[row] = str(error)
    kept = {name: columns[name] for name in ("part", "part_rows", "image_id")}
    return {**kept, "pixels": pixels_NHWC, "error": errors, "content": contents}


class EncodeImages:
    """Actor: pixels of one part through the frozen vision tower, written as one shard of a features artifact."""

    def __init__(self, tower: str, work_uri: str, batch: int = 128, device: str = "cpu", threads: int = 1) -> None:
        """Load the tower (once per actor).

        Args:
            tower: see `find_tower`.
            work_uri: where the stage writes.
            batch: images per forward pass.
            device: "cpu" or "cuda".
            threads: threads of this process's matrix products.
        """
        check_shared(storage.join(work_uri, "stage.json"))
        self._tower, self._device, self._batch = load_tower(tower).to(device), device, batch
        limit_torch(threads)
        self._writer = FeatureShardWriter(work_uri)

    def __call__(self, columns: Columns) -> Columns:
        """Encode and write one part.

        Args:
            columns: what `decode_images` returns.

        Returns:
            One row: `part`, `rows`, `rejected`.
        """
        part = whole_part(columns)
        reasons = [str(reason or "") for reason in columns["error"]]
        good = [row for row, reason in enumerate(reasons) if not reason]
        bad = [(str(columns["image_id"][row]), reason) for row, reason in enumerate(reasons) if reason]
        patches_NPD = self.encode(np.asarray(columns["pixels"])[good])
        ids = [str(name) for name in columns["image_id"]]
        contents = dict(zip(ids, map(str, columns["content"]), strict=True))
        self._writer.write(part, [ids[row] for row in good], patches_NPD, bad, contents)
        return _summary(part, rows=len(reasons), rejected=len(bad))

    def encode(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Patch tokens, fp16 [n, P, D], of uint8 pixels."""
        import torch

        result = np.empty((len(pixels_NHWC), self._tower.num_tokens, self._tower.width), dtype=np.float16)
        with torch.inference_mode():
            for start in range(0, len(pixels_NHWC), self._batch):
                pixels = torch.from_numpy(np.ascontiguousarray(pixels_NHWC[start : start + self._batch]))
                result[start : start + self._batch] = self._tower(pixels.to(self._device)).half().cpu().numpy()
        return result


class GenerateTexts:
    """Actor: modification texts of one part's pairs, written as one shard of a triplets artifact."""

    def __init__(
        self,
        load: GeneratorLoader,
        generator: str,
        options: Mapping[str, Any],
        features: Sequence[str],
        work_uri: str,
        row: Mapping[str, Any],
        recipe: str,
        both: bool = True,
        threads: int = 1,
    ) -> None:
        """Load generator and features (once per actor).

        Args:
            load: loader of the generator.
            generator: generator artifact.
            options: passed on to the loader: device, seed, directions, decoding settings.
            features: features artifacts.
            work_uri: where the stage writes.
            row: columns that are equal in all rows (source, split, generator, seed).
            recipe: digest of everything but the pair that a text depends on.
            both: two triplets per pair, or the forward one.
            threads: threads of this process's matrix products.
        """
        check_shared(storage.join(work_uri, "stage.json"))
        self._generator = load(find_generator(generator), **options)
        limit_torch(threads)
        self._features = FeatureStore.open_many(list(features))
        self._work_uri, self._recipe, self._both = work_uri, recipe, both
        self._row = {**row, "prompt_version": self._generator.prompt_version}

    def __call__(self, columns: Columns) -> Columns:
        """Write the texts of one part.

        Args:
            columns: `part`, `part_rows` and the fields of `Pair`.

        Returns:
            One row: `part`, `rows` (triplets), `rejected`.
        """
        part = whole_part(columns)
        pairs = pairs_of(columns)
        triplets, rejected = self.rows(pairs, self.generate(pairs))
        write_part(self._work_uri, f"part-{part:05d}", triplet_table(triplets), rejected_table(rejected))
        return _summary(part, rows=len(pairs), rejected=len(rejected))

    def generate(self, pairs: Sequence[Pair]) -> list[Generation]:
        """One generation per pair, in order; a pair whose images have no features is one that failed.

        Raises:
            ArtifactError: when the generator breaks its promise of one answer per pair, in order.
        """
        absent = {pair.pair_id: self._features.missing((pair.reference_id, pair.target_id)) for pair in pairs}
        able = [pair for pair in pairs if not absent[pair.pair_id]]
        made = self._generator.generate(able, self._features) if able else []
        if [item.pair_id for item in made] != [pair.pair_id for pair in able]:
            raise ArtifactError(f"The generator returned {len(made)} texts for {len(able)} pairs, or in another order.")
        answers = {item.pair_id: item for item in made}
        reason = "image {!r} has no features".format
        return [
            answers.get(pair.pair_id) or Generation(pair.pair_id, None, error=reason(absent[pair.pair_id][0]))
            for pair in pairs
        ]

    def rows(
        self, pairs: Sequence[Pair], generations: Sequence[Generation]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of triplets and of rejections: together one for each pair and direction."""
        triplets: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        for pair, made in zip(pairs, generations, strict=True):
            forward = (pair.reference_id, pair.target_id, "forward", made.text, made.reverse_text)
            backward = (pair.target_id, pair.reference_id, "reverse", made.reverse_text, made.text)
            for reference, target, direction, text, other in (forward, backward) if self._both else (forward,):
                key = {
                    "triplet_id": triplet_id(pair.pair_id, self._recipe, direction), "pair_id": pair.pair_id,
                    "reference_id": reference, "target_id": target,
                }  # fmt: skip
                if text and text.strip():
                    triplets.append({**key, **self._row, **_texts(text, other), **_numbers(pair, made)})
                else:
                    names = ("source", "generator")
                    reason = {"reason": made.error or f"no {direction} text", "modification": text}
                    rejected.append({**key, **{name: self._row[name] for name in names}, **reason})
        return triplets, rejected


def pairs_of(columns: Columns) -> list[Pair]:
    """Rows of columns as `Pair` values."""
    texts = [columns[name].tolist() for name in ("pair_id", "reference_id", "target_id", "group_id")]
    scores, ranks = columns["score"].tolist(), columns["rank"].tolist()
    return [Pair(*row) for row in zip(*texts, scores, ranks, strict=True)]


def find_tower(uri: str) -> Path | str:
    """Where a tower's files lie: in a `towers` or `checkpoint` artifact's `vision/`, or the name as it is.

    Raises:
        ArtifactError: when there is nothing at a path or URI, or an artifact holds no vision tower.
    """
    is_place = uri.startswith(("/", "~", ".")) or "://" in uri
    if is_place and not storage.exists(uri):
        raise ArtifactError(f"There is no vision tower at {uri!r}. Run `cirray towers` first, or correct the name.")
    if not is_complete(uri):
        return storage.local_path(uri) if storage.is_local(uri) and storage.exists(uri) else uri
    folder = localize(uri)
    for place in (folder / "vision", folder / "model" / "vision", folder):
        if any((place / name).is_file() for name in ("config.json", "open_clip_config.json")):
            return place
    raise ArtifactError(f"The artifact {uri!r} holds no vision tower; name a towers or checkpoint artifact.")


def find_generator(uri: str) -> Path:
    """Local folder of a generator's files: its artifact's root, or `generator/` in it.

    Raises:
        ArtifactError: when there is none.
    """
    folder = localize(uri, "generator")
    for place in (folder, folder / "generator"):
        if (place / "config.json").is_file():
            return place
    raise ArtifactError(f"The artifact {uri!r} holds no generator (no config.json). Train one first.")


def load_generator(folder: str | Path, **options: Any) -> ModificationGenerator:
    """`cirray.generators.store.load_generator`, imported where it is called: the driver needs no transformers."""
    from cirray.generators import store

    return store.load_generator(folder, **options)


def limit_torch(threads: int) -> None:
    """Set the number of threads of this process's matrix products, where torch has been loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def load_tower(uri: str) -> Any:
    """The frozen vision tower behind `find_tower`."""
    from cirray.models.towers.hf_blip2 import load_vision_tower

    return load_vision_tower(find_tower(uri))


def _summary(part: int, rows: int, rejected: int) -> Columns:
    return {"part": np.array([part]), "rows": np.array([rows]), "rejected": np.array([rejected])}


def _texts(text: str, other: str | None) -> dict[str, Any]:
    return {"modification": text.strip(), "reverse_modification": (other or "").strip() or None}


def _numbers(pair: Pair, made: Generation) -> dict[str, Any]:
    return {"logprob": float(made.logprob), "scores": {"pair": float(pair.score)}, "group_id": pair.group_id}
