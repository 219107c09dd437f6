"""Quality of generated texts with known scenes: exact edits and right direction, per kind of edit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cirray.data.shapes.judge import judge
from cirray.data.shapes.scenes import Scene, difference
from cirray.types import Generation, Pair


@dataclass(frozen=True)
class TextQuality:
    """Shares over the judged texts of one direction.

    `exact`: the text, applied to the reference, gives exactly the target. `direction`: it does not fit the reversed
    pair. `parses`: it is a sentence of the grammar. `kinds`: `exact` per kind of the true edit. Failed generations
    count as wrong in all; pairs that are not one edit apart are judged but have no kind.
    """

    count: int
    exact: float
    direction: float
    parses: float
    kinds: dict[str, float]

    def to_dict(self) -> dict[str, float | dict[str, float]]:
        """Rounded plain values."""
        kinds = {kind: round(value, 4) for kind, value in sorted(self.kinds.items())}
        shares = {"exact": round(self.exact, 4), "direction": round(self.direction, 4), "parses": round(self.parses, 4)}
        return {**shares, "kinds": kinds}


def judge_texts(texts: Sequence[str | None], scenes: Sequence[tuple[Scene, Scene]]) -> TextQuality:
    """Judge texts, each as the modification from its first scene to its second; None is a failed generation."""
    totals: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    exact_kinds: Counter[str] = Counter()
    for text, (reference, target) in zip(texts, scenes, strict=True):
        verdict = judge(text, reference, target) if text is not None else None
        exact = verdict is not None and verdict.exact
        totals["exact"] += exact
        totals["direction"] += verdict is not None and verdict.direction
        totals["parses"] += verdict is not None and verdict.parses
        edit = difference(reference, target)
        if edit is not None:
            kinds[edit.kind] += 1
            exact_kinds[edit.kind] += exact
    count = max(len(texts), 1)
    shares = {kind: exact_kinds[kind] / kinds[kind] for kind in kinds}
    return TextQuality(
        len(texts), totals["exact"] / count, totals["direction"] / count, totals["parses"] / count, shares
    )


def judge_generations(
    pairs: Sequence[Pair], generations: Sequence[Generation], scenes: Mapping[str, Scene]
) -> dict[str, TextQuality]:
    """Judge both directions of generated texts: keys "forward" and "reverse"."""
    ends = [(scenes[pair.reference_id], scenes[pair.target_id]) for pair in pairs]
    forward = judge_texts([row.text for row in generations], ends)
    reverse = judge_texts([row.reverse_text for row in generations], [(target, source) for source, target in ends])
    return {"forward": forward, "reverse": reverse}
