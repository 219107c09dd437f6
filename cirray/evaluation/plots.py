"""Figures: training curves, recall over k, sweeps, data-size curves. matplotlib is imported when needed.

No pyplot: no global state, no display. `inline_svg` lets text and axes take the page's colours, light or dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cirray.core import storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#4c78ff", "#f08a3c", "#23a889", "#c25bd3", "#d8a514", "#e0507a", "#6f8aa8", "#8d6e53")
_INK, _GRID = "#5d6672", "#8a93a0"
_FEW = 9
"""Most lines that leave room for a legend inside the axes."""
_NOT_LOSSES = ("step", "lr", "grad_norm", "temperature", "seconds", "epoch")


def training_curves(title: str, history: Sequence[Mapping[str, float]]) -> "Figure":
    """Loss and its terms over steps; learning rate and gradient norm are left out."""
    figure, axes = _figure(1, title, 3.9, 2.7)
    steps = [row["step"] for row in history]
    for colour, (name, values) in zip(_colours(), _terms(history).items(), strict=False):
        axes[0].plot(steps, values, color=colour, alpha=0.28 if len(steps) > 40 else 1.0, linewidth=1.4)
        if len(steps) > 40:
            axes[0].plot(steps, _smooth(values), color=colour, linewidth=1.8, label=name)
        else:
            axes[0].lines[-1].set_label(name)
    _finish(axes[0], "step", "loss")
    return figure


def recall_curves(ranks: Mapping[str, Sequence[np.ndarray]], up_to: int = 50) -> "Figure":
    """Recall at every k from 1 to `up_to`, mean over seeds, one line per model (logarithmic k).

    `ranks`: model name -> 0-based ranks [queries] of each seed's run.
    """
    many = len(ranks) > _FEW
    figure, axes = _figure(1, "Recall at k", 9.0 if many else 6.0, max(3.2, 0.9 + 0.17 * len(ranks)))
    ks = np.arange(1, up_to + 1)
    for colour, (name, runs) in zip(_colours(), ranks.items(), strict=False):
        curves_SK = np.stack([(np.asarray(run)[:, None] < ks).mean(axis=0) for run in runs])
        axes[0].plot(ks, 100 * curves_SK.mean(axis=0), color=colour, linewidth=1.8, label=name)
        if len(runs) > 1:
            axes[0].fill_between(ks, *(100 * edge(curves_SK, axis=0) for edge in (np.min, np.max)),
                                 color=colour, alpha=0.15, linewidth=0)  # fmt: skip
    axes[0].set_xscale("log")
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= up_to]
    axes[0].set_xticks(ticks, [str(k) for k in ticks])
    axes[0].minorticks_off()
    _finish(axes[0], "k", "recall in %", legend=not many)
    if many:
        axes[0].legend(frameon=False, fontsize=7.5, labelcolor=_INK, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def sweep_plot(trials: Sequence[Mapping[str, Any]], parameters: Sequence[str], metric: str = "R@1") -> "Figure":
    """One panel per swept parameter: its value against the metric (a fraction), the best trial ringed.

    Trials without the metric are left out.
    """
    done = [trial for trial in trials if trial.get(metric) is not None]
    figure, axes = _figure(len(parameters), f"Sweep: {metric} of {len(done)} trials", 3.3, 2.8)
    best = max(done, key=lambda trial: trial[metric], default=None)
    for axis, name, colour in zip(axes, parameters, _colours(), strict=False):
        axis.scatter([trial[name] for trial in done], [100 * trial[metric] for trial in done],
                     s=26, color=colour, alpha=0.75, linewidths=0)  # fmt: skip
        if best is not None:
            axis.scatter([best[name]], [100 * best[metric]], s=120, facecolors="none", edgecolors=_INK, linewidths=1.4)
            axis.annotate(f"{100 * best[metric]:.1f}", (best[name], 100 * best[metric]), xytext=(8, 6),
                          textcoords="offset points", color=_INK, fontsize=9)  # fmt: skip
        _finish(axis, name, f"{metric} in %" if axis is axes[0] else "", legend=False)
    return figure


def data_size_curve(
    series: Mapping[str, Sequence[tuple[float, float, float | None]]], x_label: str = "labelled triplets",
    y_label: str = "R@1 in %", scale: str = "log",
) -> "Figure":  # fmt: skip
    """A figure over the amount of data (or any other number), one line per method.

    `series`: method -> (amount, mean, deviation or None) points, fractions. A `log` axis has room for an amount of 0.
    """
    figure, axes = _figure(1, f"{y_label} over {x_label}", 6.0, 3.2)
    for colour, (name, points) in zip(_colours(), series.items(), strict=False):
        amounts, means = [point[0] for point in points], [100 * point[1] for point in points]
        errors = [100 * (point[2] or 0.0) for point in points]
        axes[0].errorbar(amounts, means, yerr=errors, color=colour, marker="o", markersize=4, linewidth=1.6,
                         capsize=3, label=name)  # fmt: skip
    amounts = sorted({point[0] for points in series.values() for point in points})
    if scale == "log" and amounts[0] <= 0:  # a logarithm has no 0: linear up to the first amount above it
        axes[0].set_xscale("symlog", linthresh=min((amount for amount in amounts if amount > 0), default=1.0))
    else:
        axes[0].set_xscale(scale)
    axes[0].set_xticks(amounts, [f"{amount:,g}" for amount in amounts])
    axes[0].minorticks_off()
    _finish(axes[0], x_label, y_label)
    return figure


def method_plot(values: Mapping[str, Sequence[float]], metric: str = "R@1") -> "Figure":
    """One line per method: mean with deviation, and every seed as a dot.

    `values`: method -> one fraction per seed, in the table's order (drawn from top to bottom).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.7 + 0.3 * len(values)), layout="constrained")
    axis = figure.subplots()
    for place, (seeds, colour) in enumerate(zip(values.values(), _colours() * len(values), strict=False)):
        points = 100 * np.asarray(seeds, dtype=float)
        axis.barh(place, points.mean(), height=0.62, color=colour, alpha=0.25, linewidth=0)
        axis.scatter(points, np.full(len(points), place), s=16, color=colour, linewidths=0, zorder=3)
        spread = points.std(ddof=1) if len(points) > 1 else 0.0
        axis.errorbar(points.mean(), place, xerr=spread, color=colour, capsize=3, linewidth=1.2)
        axis.annotate(f"{points.mean():.1f}", (max(points.max(), points.mean() + spread), place), xytext=(7, 0),
                      textcoords="offset points", va="center", color=_INK, fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(-0.7, len(values) - 0.3)
    axis.invert_yaxis()
    axis.margins(x=0.1)
    _finish(axis, f"{metric} in %", "", legend=False)
    axis.grid(visible=False, axis="y")
    return figure


def frontier_plot(
    points: Mapping[str, tuple[float, float]], edge: Sequence[str], best: str, target: float
) -> "Figure":  # fmt: skip
    """Queries a second over recall: a dot for each kind of index, a line through those that no other one beats.

    `points`: name -> (recall, queries a second). The recall that was wanted is a vertical line.
    """
    figure, axes = _figure(1, f"Queries a second over recall; built: {best}", 7.2, 4.2)
    colours = _colours()
    line = sorted(points[name] for name in edge)
    axes[0].plot(*zip(*line, strict=True), color=colours[0], linewidth=1.2)
    axes[0].axvline(target, color=_GRID, linewidth=0.8, linestyle=":")
    for name, place in points.items():
        axes[0].scatter(*place, s=48 if name == best else 16, color=colours[1 if name == best else 0], zorder=3)
        axes[0].annotate(name, place, xytext=(4, 4), textcoords="offset points", color=_INK, fontsize=6)
    axes[0].set_yscale("log")
    _finish(axes[0], "recall of the best ten", "queries a second", legend=False)
    return figure


def save_figure(figure: "Figure", uri: str | Path) -> None:
    """Write a figure to a path or URI; the suffix (.png, .svg, .pdf) gives the format."""
    stream = io.BytesIO()
    figure.savefig(stream, format=Path(storage.without_query(uri)).suffix.lstrip("."), dpi=160, facecolor="white")
    storage.write_bytes(uri, stream.getvalue())


def inline_svg(figure: "Figure", label: str) -> str:
    """An `<svg>` element for a page: text and axes in the page's own colour and typeface, no outside reference."""
    import html

    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.S)
    text = re.sub(r"\s(?:xmlns:xlink|xmlns|version)=\"[^\"]*\"", "", text, count=3)
    text = text.replace("xlink:href", "href").replace(_INK, "currentColor").replace(_GRID, "currentColor")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    box = re.search(r'viewBox="[^"]*"', text)
    opening = f'<svg {box.group() if box else ""} role="img" aria-label="{html.escape(label)}">'
    return opening + text[text.index(">") + 1 :].strip()


def _figure(panels: int, title: str, width: float = 4.6, height: float = 3.0) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))
    figure.suptitle(title, fontsize=9.5, color=_INK, x=0.02, ha="left")
    return figure, axes


def _finish(axis: "Axes", x_label: str, y_label: str, legend: bool = True) -> None:
    axis.set_xlabel(x_label, color=_INK, fontsize=8)
    axis.set_ylabel(y_label, color=_INK, fontsize=8)
    axis.tick_params(colors=_INK, labelsize=7.5, length=0)
    axis.grid(axis="y", color=_GRID, alpha=0.22, linewidth=0.8)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)
    if legend and axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=7.5, labelcolor=_INK)


def _colours() -> list[str]:
    return list(PALETTE) * 4


def _terms(history: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = [name for name in (history[-1] if history else {}) if name not in _NOT_LOSSES]
    terms = {name: [float(row.get(name, np.nan)) for row in history] for name in names}
    total = terms.get("loss")
    return {name: values for name, values in terms.items() if name == "loss" or values != total}


def _smooth(values: Sequence[float], share: float = 0.05) -> np.ndarray:
    """Centred running mean over a share of the curve, shorter at its ends."""
    half = max(1, int(len(values) * share / 2))
    return np.asarray([np.mean(values[max(0, at - half) : at + half + 1]) for at in range(len(values))])
