"""The plan of texts by a large model: no memory here, but tokens, hours and a price."""

from cirray.generators.config import LmmConfig
from cirray.pipelines.planning.config import PlanConfig
from cirray.pipelines.planning.inputs import RecipesBeside, pair_count
from cirray.pipelines.planning.report import Line, PlanReport
from cirray.pipelines.texts.config import GenerateRun

_PATCH = 28
"""Side in pixels of what one token shows (Qwen2-VL and its successors)."""
_CAPTION, _FRAME = 30, 30
"""Tokens of a caption, and of an answer beside its texts (assumed)."""
_LETTERS = 4
"""Letters of a token of English (assumed)."""


def plan_lmm(run: GenerateRun, plan: PlanConfig, beside: RecipesBeside) -> PlanReport:
    """Tokens, time and price of writing texts by an engine."""
    chosen = run.generator.settings
    assert isinstance(chosen, LmmConfig)
    pairs = plan.rows or pair_count(run.pairs, beside)
    seen = plan.picture_tokens or (round(chosen.side / _PATCH) ** 2 if chosen.data else _CAPTION)
    read = 2 * seen + len(chosen.template) // _LETTERS
    written = (2 if run.reverse_texts else 1) * plan.answer_tokens + _FRAME
    rate, source = plan.samples_per_second, "plan.samples_per_second"
    if rate is None and plan.tokens_per_second:
        rate, source = plan.tokens_per_second / written, "plan.tokens_per_second"
    cost = None if plan.price is None else (read * plan.price[0] + written * plan.price[1]) / 1e6
    sections = {
        "a pair": (
            Line("tokens read", read, "count", f"two {'pictures' if chosen.data else 'captions'} of {seen}, question"),
            Line("tokens written", written, "count", f"{plan.answer_tokens} a text, and JSON around them"),
            Line("price", cost, "", "of plan.price, read and written" if cost is not None else "set plan.price"),
        ),
        "all pairs": (
            Line("pairs to write", pairs, "count", "" if pairs else "set plan.rows"),
            Line("pairs", rate, "per second", source if rate else "set plan.tokens_per_second, of all servers"),
            Line("time", pairs / rate if pairs and rate else None, "seconds"),
            Line("tokens", pairs * (read + written) if pairs else None, "count"),
            Line("cost", pairs * cost if pairs and cost is not None else None, "", "without questions asked again"),
        ),
    }
    return PlanReport("plan of writing texts by a large model", sections)
