"""The plot of a report: SQNR along the layers of a model, as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pyq.quantization.verification import LayerResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that the plot is drawn with, and what each becomes in the page: CSS decides, in light and in dark.
INK, MUTED, GRID, PANEL = "#010101", "#020202", "#030303", "#0a0a0a"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808")
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    PANEL: "var(--panel)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}


class Point(NamedTuple):
    """One layer in the plot."""

    position: int
    sqnr: float
    operator: str
    output: str


def sqnr_plot(layers: Sequence[LayerResult]) -> str:
    """An `<svg>` of the finite SQNR of `layers` in their order of execution, one colour per operator.

    ImportError, saying what to install, without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a report needs matplotlib: pip install 'pyq-int8[report]'", name="matplotlib") from error
    points = [
        Point(layer.index, layer.sqnr, layer.op_type, layer.output)
        for layer in sorted(layers, key=lambda layer: layer.index)
        if layer.sqnr is not None and math.isfinite(layer.sqnr)
    ]
    # Fixed hash salt and no date: the same layers give the same bytes. Text stays text, in the page's font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyq", "font.size": 9}):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, points)
        stream = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=no_metadata)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, shown in PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg


def _draw(axes: Axes, points: Sequence[Point]) -> None:
    for colour, (operator, members) in zip(SERIES, _by_operator(points).items(), strict=False):
        x, y = [point.position for point in members], [point.sqnr for point in members]
        axes.vlines(x, 0, y, color=colour, linewidth=1, alpha=0.35)
        axes.plot(x, y, "o", color=colour, markersize=4, label=operator)
    if points:
        _name_worst(axes, min(points, key=lambda point: point.sqnr))
        columns = len(SERIES)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=columns, frameon=False, labelcolor=INK)
    axes.set_xlabel("int8 layers in order of execution", color=MUTED)
    axes.set_ylabel("SQNR in dB", color=MUTED)
    axes.tick_params(colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_ylim(bottom=min([0, *(point.sqnr for point in points)]))


def _name_worst(axes: Axes, point: Point) -> None:
    name = point.output if len(point.output) <= 28 else f"…{point.output[-27:]}"
    name = name.replace("$", r"\$")  # or matplotlib takes what is between two of them for a formula
    behind = {"facecolor": PANEL, "edgecolor": "none", "pad": 1}
    where = (point.position, point.sqnr)
    axes.annotate(name, where, (7, -10), textcoords="offset points", color=INK, fontsize=8, bbox=behind)


def _by_operator(points: Sequence[Point]) -> dict[str, list[Point]]:
    """The points by operator: the most frequent operators by name, what is left as "others"."""
    counts = Counter(point.operator for point in points).most_common()
    named = [operator for operator, _ in counts[: len(SERIES) - (len(counts) > len(SERIES))]]
    groups: dict[str, list[Point]] = {operator: [] for operator in named}
    for point in points:
        groups.setdefault(point.operator if point.operator in named else "others", []).append(point)
    return groups
