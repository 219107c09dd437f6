"""The story's results as text: one table over one or more seeds, the bars, what was generated, where things are."""

import shlex
from collections.abc import Mapping, Sequence

from cirray.core import storage
from cirray.core.environ import this_program
from cirray.core.log import linked
from cirray.evaluation.metrics import spread
from cirray.evaluation.tables import Bar, StoryRow, accuracy_bar, gain_bar, kept_gain_bar, render_story_table
from cirray.pipelines.study.story import GENERATORS, IMAGE_ONLY, ROWS, StoryResult
from cirray.serving.config import ServeRun

_BEST, _ORACLE = "MTST + fine-tuning", "oracle texts + fine-tuning"
_TEXT_BARS = {2000: 0.75, 1000: 0.68}
_GAIN_BARS = {2000: 6.0, 1000: 10.0}
_SERVED = ServeRun()


def render_story(results: Sequence[StoryResult], bars: bool = True) -> str:
    """The table of one story, or of the same story with several seeds (mean ± deviation).

    Args:
        results: one per seed, with equal rows and labels.
        bars: also print each promise with its measurement.
    """
    rows = story_rows(results)
    promises = story_bars(results, rows) if bars else ()
    title = f"embedded world `shapes`, {results[0].labels:,} labelled triplets, {len(results)} seed(s)"
    table = render_story_table(list(rows.values()), promises, results[0].protocol, title)
    return "\n\n".join([table, text_lines(results), time_line(results)])


def story_rows(results: Sequence[StoryResult]) -> dict[str, StoryRow]:
    """Rows by name, in the table's order."""
    names = [IMAGE_ONLY, *(name for name in ROWS if name in results[0].recalls)]
    return {name: _row(name, results) for name in names}


def story_bars(results: Sequence[StoryResult], rows: Mapping[str, StoryRow]) -> list[Bar]:
    """The issue's promises that these rows can speak to."""
    labels, bars = _nearest(results[0].labels), []
    if labels is None:
        return []
    for direction in ("forward", "reverse"):
        values = [_exact(result, "trained", direction) for result in results]
        bars.append(accuracy_bar(f"generated text exact, {direction}, frozen LM", values, _TEXT_BARS[labels]))
    baselines = [row for name, row in rows.items() if name.startswith("labelled only")]
    if _BEST in rows and baselines:
        best = max((rows[name] for name in (_BEST, "MTST + PTHA") if name in rows), key=lambda row: spread(row.r1).mean)
        bars.append(gain_bar(f"{best.name} beats labelled only", best, baselines, _GAIN_BARS[labels]))
        if _ORACLE in rows:
            bars.append(kept_gain_bar("share of the oracle's gain kept", best, rows[_ORACLE], baselines, 0.8))
    return bars


def text_lines(results: Sequence[StoryResult]) -> str:
    """Accuracy of the generated texts: before and after the labels, and over the mined pool."""
    lines = ["generated texts, exact edits on held-out pairs (forward / reverse):"]
    shown = [("generator", "zero_shot", "zero-shot, no label"), ("generator", "trained", "trained, LM frozen (used)")]
    shown += [(name, "trained", f"trained, {name}") for name in GENERATORS]
    for generator, key, words in shown:
        if all(key in result.text.get(generator, {}) for result in results):
            shares = [_share([_exact(item, key, way, generator) for item in results]) for way in ("forward", "reverse")]
            lines.append(f"  {words:<32}{' / '.join(shares)}")
    for stage, words in (("synthetic", "all mined pairs, both ways"), ("checked", "after the round-trip check")):
        judged = [result.text[stage] for result in results if "exact" in result.text.get(stage, {})]
        if judged:
            count = spread([float(found["triplets"]) for found in judged]).mean
            lines.append(
                f"  {words:<32}{_share([float(found['exact']) for found in judged])}   ({count:,.0f} triplets)"
            )
    return "\n".join(lines)


def _share(values: Sequence[float]) -> str:
    """Mean of fractions, with the deviation of several."""
    found = spread(values)
    return f"{found.mean:.3f}" + ("" if found.deviation is None else f" ± {found.deviation:.3f}")


def time_line(results: Sequence[StoryResult]) -> str:
    """Wall time, and the longest stages."""
    wall = spread([result.wall for result in results]).mean
    longest = sorted(results[0].seconds.items(), key=lambda item: -item[1])[:6]
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in longest)
    return f"wall time {wall:.0f} s a seed; longest stages: {stages}"


def place_lines(result: StoryResult) -> str:
    """Where the report (a link), the checkpoint and the index are, and the commands to type next, in any folder."""
    lines = [
        f"report      {linked(storage.url(storage.join(result.places['report'], 'report.html')))}",
        f"checkpoint  {result.places['checkpoint']}",
        f"index       {result.places['index']}",
        "",
        "search it with pictures:",
        f"  {serve_command(result)}",
        f"then open {linked(f'http://{_SERVED.host}:{_SERVED.port}')}",
    ]
    if result.query is not None:
        name, text = result.query
        lines += ["or ask it one thing from here:", f"  {_command(result, 'search', '--id', name, '--text', text)}"]
    return "\n".join(lines)


def serve_command(result: StoryResult) -> str:
    """What serves the story's index, as typed in a new shell: the program with its whole path; a root if needed."""
    return _command(result, "serve")


def _command(result: StoryResult, *words: str) -> str:
    usual = storage.join(_SERVED.index) == storage.join(result.places["index"])
    place = storage.local_path(result.root).absolute() if storage.is_local(result.root) else result.root
    return shlex.join([*this_program(), *words, *(() if usual else ("--root", str(place)))])


def _row(name: str, results: Sequence[StoryResult]) -> StoryRow:
    found = ROWS.get(name)
    recall = {k: tuple(result.recalls[name][f"R@{k}"] for result in results) for k in (1, 5, 10)}
    seconds = None
    if found:
        seconds = spread([sum(result.seconds.get(stage, 0.0) for stage in found.trained) for result in results]).mean
    labels = results[0].labels if found and found.labelled else 0
    return StoryRow(name, labels, recall[1], recall[5], recall[10], tuple(r.seed for r in results), seconds)


def _nearest(labels: int) -> int | None:
    return labels if labels in _TEXT_BARS else None


def _exact(result: StoryResult, key: str, direction: str, generator: str = "generator") -> float:
    return float(result.text[generator][key][direction]["exact"])
