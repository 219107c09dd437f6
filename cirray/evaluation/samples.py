"""Generated texts for the report, judged if the images' scenes are known."""

from collections.abc import Sequence
from pathlib import Path

from cirray.core.errors import DataError
from cirray.core.seeding import numpy_generator
from cirray.evaluation.report import TextSample
from cirray.types import Triplet


def draw_samples(triplets: Sequence[Triplet], count: int, seed: int, world: str = "") -> tuple[TextSample, ...]:
    """Some generated texts drawn at random, right or wrong by the scenes of a shapes `world`; unjudged without one.

    Raises DataError when the world lacks a scene of a drawn image.
    """
    order = numpy_generator(seed, "report texts").permutation(len(triplets))[:count]
    drawn = [triplets[int(at)] for at in sorted(order)]
    if not world:
        return tuple(TextSample(item.reference_id, item.target_id, item.modification) for item in drawn)
    return judge_samples(drawn, world)


def judge_samples(triplets: Sequence[Triplet], world: str) -> tuple[TextSample, ...]:
    """Texts with a verdict: exact, says the reverse, another change, or not understood."""
    from cirray.data.shapes.judge import judge
    from cirray.data.shapes.world import read_scenes

    scenes, found = read_scenes(Path(world).expanduser()), []
    for item in triplets:
        for name in (item.reference_id, item.target_id):
            if name not in scenes:
                raise DataError(f"The shapes world {world!r} has no scene of image {name!r}, so its text has no judge.")
        verdict = judge(item.modification, scenes[item.reference_id], scenes[item.target_id])
        words = _words(verdict.parses, verdict.exact, verdict.reversed)
        found.append(TextSample(item.reference_id, item.target_id, item.modification, verdict.exact, words))
    return tuple(found)


def _words(parses: bool, exact: bool, reverse: bool) -> str:
    if exact:
        return "✓ exact"
    if not parses:
        return "✗ not understood"
    return "✗ says the reverse" if reverse else "✗ another change"
