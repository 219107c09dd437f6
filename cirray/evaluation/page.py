"""The report as one HTML page: pictures embedded, no script, no outside resource, every name escaped."""

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from cirray.core.seeding import numpy_generator
from cirray.evaluation import frame
from cirray.evaluation.metrics import NEVER, Spread
from cirray.evaluation.pictures import Thumbnails
from cirray.evaluation.plots import inline_svg, recall_curves, training_curves
from cirray.evaluation.report import ReportContent, ReportRow, TextSample, per_edit_spread
from cirray.evaluation.result import EvaluationResult
from cirray.evaluation.tables import percent
from cirray.types import Query

_STRIP = 8


def render_page(content: ReportContent) -> str:
    """The whole page.

    Args:
        content: what to show; `check_rows` has passed.

    Returns:
        HTML text that needs no other file.
    """
    pictures = Thumbnails(content.dataset.images)
    sections = [
        frame.heading(content.title, content.rows[0].results[0].protocol), _tiles(content.rows[-1]),
        _models(content.rows), _edits(content.rows),
        _queries(content, pictures), _samples(content.samples, pictures), _curves(content),
        frame.facts({"data set": content.dataset.describe(), **content.facts}, "Inputs and settings"),
    ]  # fmt: skip
    return frame.page(f"{content.title} · {content.dataset.name}", sections)


def choose_queries(result: EvaluationResult, count: int, seed: int) -> dict[str, list[int]]:
    """Positions of the queries to show, by heading: random, found most clearly, ranked worst.

    The clear ones are hits at rank 1 with the largest score margin, alternating over edit types; queries that cannot be
    hit are only in the random group.
    """
    total = result.query_count
    drawn = numpy_generator(seed, "report queries").permutation(total)[:count]
    order = np.argsort(-np.where(result.ranks == NEVER, -1, result.ranks), kind="stable")
    worst = [int(at) for at in order if 0 < result.ranks[at] < NEVER][:count]
    return {
        "Drawn at random": [int(at) for at in drawn],
        "Found most clearly": _clearest(result, count),
        "Ranked worst": worst,
    }


def _clearest(result: EvaluationResult, count: int) -> list[int]:
    found = [at for at in range(result.query_count) if result.ranks[at] == 0]
    found.sort(key=lambda at: -_margin(result.rankings[at].scores))
    turns: dict[str, int] = {}
    keyed = []
    for at in found:
        edit = result.queries[at].edit
        turns[edit] = turns.get(edit, 0) + 1
        keyed.append((turns[edit], at))
    keyed.sort(key=lambda item: item[0])
    return [at for _, at in keyed[:count]]


def _margin(scores: Sequence[float]) -> float:
    return scores[0] - scores[1] if len(scores) > 1 else 0.0


def _tiles(row: ReportRow) -> str:
    first, tiles = row.results[0], []
    for name, value in row.metrics.items():
        tiles.append((percent(value.mean) + " %", name, _uncertainty(value, first, name)))
    ranks = first.ranks[first.ranks != NEVER]
    if len(ranks):
        tiles.append((f"{np.median(ranks) + 1:g}", "median rank", f"of {first.gallery_size:,} images"))
    body = "".join(
        f'<div class="card tile"><b>{escape(value)}</b><span class="name">{escape(name)}</span> '
        f"<span>{escape(note)}</span></div>\n"
        for value, name, note in tiles
    )
    return f'<div class="tiles">\n{body}</div>\n<p class="soft" style="margin-top:12px">{_about(row)}</p>\n'


def _uncertainty(value: Spread, result: EvaluationResult, name: str) -> str:
    if value.deviation is not None:
        return f"± {100 * value.deviation:.1f} over {value.count} seeds"
    low, high = result.intervals.get(name, (value.mean, value.mean))
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _about(row: ReportRow) -> str:
    kind = (
        "± is the sample deviation over seeds"
        if len(row.seeds) > 1
        else "ranges are 95 % bootstrap intervals over references"
    )
    return f"Model shown: <b>{escape(row.name)}</b>; {kind}."


def _models(rows: Sequence[ReportRow]) -> str:
    names = list(rows[-1].metrics)
    extra = [
        ("labels", [_count(row.labels_used) for row in rows]),
        ("seeds", [str(len(row.seeds)) for row in rows]),
    ]
    extra = [(name, cells) for name, cells in extra if any(cells)]
    head = ["model", *names, *(name for name, _ in extra)]
    body = ""
    for at, row in enumerate(rows):
        cells = f"<td>{escape(row.name)}</td>"
        cells += "".join(frame.cell(row.metrics[name], bar=name == names[0]) for name in names)
        cells += "".join(f'<td class="dim">{escape(values[at])}</td>' for _, values in extra)
        body += f"<tr{' class=main' if row is rows[-1] else ''}>{cells}</tr>\n"
    return f"<h2>Results</h2>\n{frame.table(head, body)}"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _edits(rows: Sequence[ReportRow]) -> str:
    curve = inline_svg(recall_curves({row.name: [run.ranks for run in row.results] for row in rows}), "Recall at k")
    figure = f'<div class="figures wide"><figure class="card">{curve}</figure></div>\n'
    edits = rows[-1].results[0].per_edit
    if not edits:
        return f"<h2>Recall at k</h2>\n{figure}"
    recalls = next(iter(edits.values())).recalls
    metric = next((name for name in rows[-1].metrics if name in recalls), next(iter(recalls)))
    spreads = [per_edit_spread(row, metric) for row in rows]
    head = ["edit", "queries", *(row.name for row in rows)]
    body = ""
    for name, group in sorted(edits.items(), key=lambda item: -item[1].recalls[metric]):
        cells = "".join(frame.cell(values[name]) for values in spreads)
        body += f'<tr><td>{escape(name)}</td><td class="dim">{group.queries:,}</td>{cells}</tr>\n'
    attributes = f'class="card scroll columns" style="--least:{110 * len(head)}px"'
    return (
        f'<h2>By type of edit</h2>\n<p class="soft">{escape(metric)} in percent.</p>\n'
        f"{frame.table(head, body, attributes)}"
        f"<h2>By depth of the list</h2>\n{figure}"
    )


def _queries(content: ReportContent, pictures: Thumbnails) -> str:
    row = content.rows[-1]
    result = row.results[0]
    parts = []
    for heading, chosen in choose_queries(result, content.shown, content.seed).items():
        if chosen:
            cards = "".join(_query(result, at, pictures) for at in chosen)
            parts.append(f'<h3>{escape(heading)}</h3>\n<div class="queries">\n{cards}</div>\n')
    seed = f", seed {row.seeds[0]}" if len(row.seeds) > 1 else ""
    return (
        f'<h2>Queries</h2>\n<p class="soft">Reference image and modification, then the first {_STRIP} answers of '
        f"{escape(row.name)}{seed}; the target has a green frame.</p>\n{''.join(parts)}"
    )


def _query(result: EvaluationResult, at: int, pictures: Thumbnails) -> str:
    query, rank = result.queries[at], int(result.ranks[at])
    level = "good" if rank == 0 else "fair" if rank < 10 else "bad"
    place = "cannot be found" if rank == NEVER else f"rank {rank + 1:,}"
    edit = f'<span class="chip">{escape(query.edit)}</span>' if query.edit else ""
    return (
        f'<article class="card query"><header>{edit}<span class="rank {level}">{place}</span>'
        f"<code>{escape(query.query_id)}</code></header>\n"
        f'<div class="ask"><figure>{_picture(query.reference_id, pictures)}</figure>'
        f"<p>{escape(query.modification)}</p></div>\n"
        f'<ol class="strip">{_strip(query, rank, result.rankings[at].ids[:_STRIP], pictures)}</ol></article>\n'
    )


def _strip(query: Query, rank: int, ids: Sequence[str], pictures: Thumbnails) -> str:
    items = [
        _answer(image_id, str(place), image_id in query.target_ids, pictures)
        for place, image_id in enumerate(ids, start=1)
    ]
    if not set(ids) & set(query.target_ids):
        place = "target" if rank == NEVER else f"{rank + 1:,}"
        items.append(_answer(query.target_ids[0], place, True, pictures, "far"))
    return "".join(items)


def _answer(image_id: str, place: str, target: bool, pictures: Thumbnails, extra: str = "") -> str:
    names = f"target {extra}".strip() if target else ""
    classes = f' class="{names}"' if names else ""
    mark = "✓ " if target and not extra else ""
    return f"<li{classes}>{_picture(image_id, pictures)}<span>{mark}{place}</span></li>"


def _picture(image_id: str, pictures: Thumbnails) -> str:
    uri, name = pictures.uri(image_id), escape(image_id)
    if uri is None:
        return f'<span class="missing" title="{name}">{name}</span>'
    pixels = ' class="pixels"' if uri.startswith("data:image/png") else ""
    return f'<img{pixels} src="{uri}" alt="{name}" title="{name}" loading="lazy">'


def _samples(samples: Sequence[TextSample], pictures: Thumbnails) -> str:
    if not samples:
        return ""
    judged = [sample.exact for sample in samples if sample.exact is not None]
    share = f" Of the {len(judged)} shown, {sum(judged)} are exact." if judged else ""
    cards = "".join(_sample(sample, pictures) for sample in samples)
    return (
        '<h2>Generated texts</h2>\n<p class="soft">Modification texts that the generator wrote for pairs of images.'
        f'{share}</p>\n<div class="samples">\n{cards}</div>\n'
    )


def _sample(sample: TextSample, pictures: Thumbnails) -> str:
    level, words = {True: ("good", "✓ exact"), False: ("bad", "✗ wrong"), None: ("chip", "not judged")}[sample.exact]
    return (
        f'<article class="card sample"><div class="pair">{_picture(sample.reference_id, pictures)}<span>→</span>'
        f"{_picture(sample.target_id, pictures)}</div>\n<p>{escape(sample.modification)}</p>"
        f'<span class="rank {level}">{escape(sample.verdict or words)}</span></article>\n'
    )


def _curves(content: ReportContent) -> str:
    figures: Iterable[str] = [
        f'<figure class="card">{inline_svg(training_curves(name, history), f"Training curve of {name}")}</figure>\n'
        for name, history in content.histories.items()
        if history
    ]
    body = "".join(figures)
    return f'<h2>Training</h2>\n<div class="figures">\n{body}</div>\n' if body else ""
