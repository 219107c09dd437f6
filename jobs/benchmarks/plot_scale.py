"""Draws the curves of `docs/scale.md`: processor seconds and memory over size, from the page's own table.

    python jobs/benchmarks/plot_scale.py

The first table with the columns `curve`, `size`, `processor s`, `MB` is read; `docs/images/scale.png` is written.
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure

from cirray.cli.main import guarded
from cirray.core.log import say
from cirray.evaluation.plots import PALETTE, save_figure

_DOCS = Path(__file__).parents[2] / "docs"
_HEAD = "| curve | size | processor s | MB |"


def main() -> None:
    """Read, draw, write."""
    curves = read((_DOCS / "scale.md").read_text(encoding="utf-8"))
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    for axis, place, label in zip(figure.subplots(1, 2), (1, 2), ("processor s", "MB"), strict=True):
        for colour, (name, rows) in zip(PALETTE, curves.items(), strict=False):
            sizes, values = [row[0] for row in rows], [row[place] for row in rows]
            axis.plot(sizes, values, color=colour, marker="o", markersize=4, linewidth=1.6, label=name.replace("`", ""))
        axis.set(xscale="log", yscale="log", xlabel="pairs, images, rows", ylabel=label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=len(curves),
        frameon=False,
        fontsize=8,
    )
    save_figure(figure, _DOCS / "images" / "scale.png")
    say(f"{sum(map(len, curves.values()))} points of {len(curves)} curves")


def read(page: str) -> dict[str, list[tuple[float, float, float]]]:
    """Size, processor seconds and MB of every row, by curve."""
    lines = page[page.index(_HEAD) :].splitlines()[2:]
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for line in lines[: next((at for at, line in enumerate(lines) if not line.startswith("|")), len(lines))]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        size, seconds, mb = (float(cell.replace(",", "")) for cell in cells)
        curves.setdefault(name, []).append((size, seconds, mb))
    return curves


if __name__ == "__main__":
    sys.exit(guarded(main))
