"""What a finished stage has found out, in one line."""

from typing import Any

from cirray.core.artifacts import Manifest

_COUNTED = ("triplets", "pairs", "labels", "rows", "images")


def learnt(result: Any) -> str:
    """How much there is of what a stage made, and how good it is where that was measured; "" for neither."""
    if not isinstance(result, Manifest):
        return ""
    counted = next((name for name in _COUNTED if result.counts.get(name)), None)
    parts = [f"{result.counts[counted]:,} {counted}"] if counted else []
    return " · ".join([*parts, *_quality(result.kind, result.metrics)])


def _quality(kind: str, metrics: dict[str, Any]) -> list[str]:
    if kind == "checkpoint":
        return [f"validation R@1 {100 * metrics['val_R@1']:.1f}"] if "val_R@1" in metrics else []
    if kind == "generator":
        ways = [metrics.get("trained", {}).get(way, {}).get("exact") for way in ("forward", "reverse")]
        shares = " / ".join(f"{100 * share:.1f}" for share in ways if share is not None)
        return [f"exact on held-out pairs {shares} % (forward / reverse)"] if shares else []
    return [f"{100 * metrics['exact']:.1f} % exact"] if "exact" in metrics else []
