"""Ray Data's workers of the generate stage: pairs of a part in, one part of a triplets artifact out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from cirray.core.errors import ArtifactError
from cirray.features.store import FeatureStore
from cirray.generators.base import ModificationGenerator, WriterSetup
from cirray.generators.config import GENERATORS, GeneratorChoice, PicturesConfig
from cirray.generators.pictures import PictureLookup, Shots
from cirray.pipelines.cluster.answers import Answers
from cirray.pipelines.cluster.streaming import Columns
from cirray.triplets.pairs import to_pairs
from cirray.triplets.schema import rejected_table, triplet_id, triplet_table
from cirray.triplets.store import write_part
from cirray.types import Generation, Pair, part_name

_ENDS = ("reference", "target")
GeneratorLoader = Callable[[GeneratorChoice, WriterSetup], ModificationGenerator]
"""(kind and settings, what the stage asks) -> the generator."""


def load_generator(choice: GeneratorChoice, setup: WriterSetup) -> ModificationGenerator:
    """The chosen generator; its code is imported here, for the driver needs no transformers."""
    return GENERATORS.get(choice.kind)(choice.settings, setup)


class GenerateTexts:
    """Actor: modification texts of one part's pairs, written as one shard of a triplets artifact."""

    def __init__(
        self,
        load: GeneratorLoader,
        generator: GeneratorChoice,
        setup: WriterSetup,
        features: Sequence[str],
        work_uri: str,
        row: Mapping[str, Any],
        recipe: str,
        both: bool = True,
    ) -> None:
        """Load generator and features (once per actor).

        Args:
            load: loader of the generator.
            generator: kind and settings.
            setup: device, seed, directions.
            features: features artifacts.
            work_uri: where the stage writes.
            row: columns that are equal in all rows (source, split, generator, seed).
            recipe: digest of everything but the pair that a text depends on.
            both: two triplets per pair, or the forward one.
        """
        self.generator = load(generator, setup)
        self._features = FeatureStore.open_many(list(features)) if generator.reads == "features" else None
        seen = generator.settings if isinstance(generator.settings, PicturesConfig) else None
        self._shots = Shots(seen.limits, seen.side) if seen and seen.data else None
        self._work_uri, self._recipe, self._both, self._texts = work_uri, recipe, both, generator.texts
        self._row = {**row, "prompt_version": self.generator.prompt_version}
        self.answers = Answers(work_uri)

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Write the texts of one part.

        Args:
            columns: `part` and the fields of `Pair`; `reference_place` and `target_place` for one that sees pictures.

        Returns: `rejected` texts, `tokens_in` and `tokens_out`, and the pairs that were `asked` about now, with texts.
        """
        pairs, number = to_pairs(columns), columns["part"][0]
        pictures = self._pictures(pairs, columns)
        rows, made = self.answers.ask(
            part_name(number), {pair.pair_id: pair for pair in pairs},
            lambda some: [asdict(item) for item in self.generate(some, pictures)], _has_text,
        )  # fmt: skip
        figures = self.write(number, pairs, [as_generation(rows[pair.pair_id]) for pair in pairs])
        return {**figures, "asked": sum(map(_has_text, made.values()))}

    def write(self, number: int, pairs: Sequence[Pair], made: Sequence[Generation]) -> dict[str, int]:
        """Write a part of the artifact; returns its figures."""
        triplets, rejected = self.rows(pairs, made)
        write_part(self._work_uri, part_name(number), triplet_table(triplets), rejected_table(rejected))
        read, written = (sum(item.tokens[way] for item in made) for way in (0, 1))
        return {"rejected": len(rejected), "tokens_in": read, "tokens_out": written}

    def generate(self, pairs: Sequence[Pair], pictures: PictureLookup | None = None) -> list[Generation]:
        """One generation per pair, in order; a pair without the features that are read is a failure.

        Raises ArtifactError when the generator does not return one answer per pair, in order.
        """
        store = self._features
        absent = {pair.pair_id: _absent(pair, store) for pair in pairs}
        able = [pair for pair in pairs if not absent[pair.pair_id]]
        made = self.generator.generate(able, store or pictures) if able else []
        if [item.pair_id for item in made] != [pair.pair_id for pair in able]:
            raise ArtifactError(f"The generator returned {len(made)} texts for {len(able)} pairs, or in another order.")
        answers = {item.pair_id: item for item in made}
        reason = "image {!r} has no features".format
        return [
            answers.get(pair.pair_id) or Generation(pair.pair_id, None, error=reason(absent[pair.pair_id][0]))
            for pair in pairs
        ]

    def _pictures(self, pairs: Sequence[Pair], columns: Columns) -> PictureLookup | None:
        if self._shots is None:
            return None
        ids = ([getattr(pair, f"{end}_id") for pair in pairs] for end in _ENDS)
        places = (columns[f"{end}_place"].tolist() for end in _ENDS)
        known = {image: place for row in zip(ids, places, strict=True) for image, place in zip(*row, strict=True)}
        return PictureLookup(known, self._shots)

    def rows(
        self, pairs: Sequence[Pair], generations: Sequence[Generation]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of triplets and of rejections: together one for each pair and direction."""
        triplets: list[dict[str, Any]] = []
        rejected: list[dict[str, Any]] = []
        numbered = (
            (pair, number, one)
            for pair, made in zip(pairs, generations, strict=True)
            for number, one in enumerate(_texts_of(made, self._texts))
        )
        for pair, number, made in numbered:
            forward = (pair.reference_id, pair.target_id, "forward", made.text, made.reverse_text)
            backward = (pair.target_id, pair.reference_id, "reverse", made.reverse_text, made.text)
            for reference, target, way, text, other in (forward, backward) if self._both else (forward,):
                direction = way_name(way, number)
                key = {
                    "triplet_id": triplet_id(pair.pair_id, self._recipe, direction), "pair_id": pair.pair_id,
                    "reference_id": reference, "target_id": target,
                }  # fmt: skip
                if text and text.strip():
                    triplets.append({**key, **self._row, **_texts(text, other), **_numbers(pair, made)})
                else:
                    names = ("source", "generator")
                    reason = {"reason": made.error or f"no {way} text", "modification": text}
                    rejected.append({**key, **{name: self._row[name] for name in names}, **reason})
        return triplets, rejected


def as_generation(row: Mapping[str, Any]) -> Generation:
    """What `asdict` made of a generation, back from JSON."""
    more = tuple(as_generation(further) for further in row["more"])
    return Generation(**{**row, "tokens": tuple(row["tokens"]), "more": more})


def way_name(way: str, number: int) -> str:
    """Name of a direction's first (`forward`) or a further text (`forward 2`), by which its triplet is known."""
    return f"{way} {number + 1}" if number else way


def _texts_of(made: Generation, wanted: int) -> tuple[Generation, ...]:
    """As many generations as texts are wanted: a pair that failed as a whole has failed in each."""
    told = (made, *made.more)
    return told + tuple(replace(made, text=None, reverse_text=None) for _ in range(wanted - len(told)))


def _has_text(row: Mapping[str, Any]) -> bool:
    return any(not one["error"] for one in (row, *row["more"]))


def _absent(pair: Pair, store: FeatureStore | None) -> tuple[str, ...]:
    """Images of a pair without the features that are read."""
    return tuple(store.missing((pair.reference_id, pair.target_id))) if store else ()


def _texts(text: str, other: str | None) -> dict[str, Any]:
    return {"modification": text.strip(), "reverse_modification": (other or "").strip() or None}


def _numbers(pair: Pair, made: Generation) -> dict[str, Any]:
    sure = {} if made.confidence is None else {"confidence": made.confidence}
    scores = {"pair": float(pair.score), **sure}
    return {"logprob": float(made.logprob), "scores": scores, "group_id": pair.group_id, "edit": made.edit}
