"""The plot of a report: SQNR along the layers of a model, as inline SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyq.quantization.verification import LayerResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that the plot is drawn with, and what each becomes in the page: CSS decides, in light and in dark.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#040404", "#050505", "#060606", "#070707", "#080808")
PAGE_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SERIES)},
}
NAMED_WORST = 3


def sqnr_plot(layers: Sequence[LayerResult]) -> str:
    """An `<svg>` of the finite SQNR of `layers` in their order of execution, one colour per operator.

    ImportError, saying what to install, without matplotlib.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "a report needs matplotlib: pip install 'pyq-int8[report]'", name="matplotlib"
        ) from error
    measured = [layer for layer in layers if layer.sqnr is not None and math.isfinite(layer.sqnr)]
    # Fixed hash salt and no date: the same layers give the same bytes. Text stays text, in the page's font.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pyq", "font.size": 9}):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, measured)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for drawn, shown in PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    return svg


def _draw(axes: Axes, layers: Sequence[LayerResult]) -> None:
    for colour, (operator, members) in zip(SERIES, _by_operator(layers).items(), strict=False):
        x = [layer.index for layer in members]
        y = [layer.sqnr for layer in members]
        axes.vlines(x, 0, y, color=colour, linewidth=1, alpha=0.35)
        axes.plot(x, y, "o", color=colour, markersize=4, label=operator)
    for layer in sorted(layers, key=lambda layer: layer.sqnr or 0)[:NAMED_WORST]:
        name = layer.output if len(layer.output) <= 28 else f"…{layer.output[-27:]}"
        axes.annotate(
            _plain(name),
            (layer.index, layer.sqnr or 0),
            (5, -9),
            textcoords="offset points",
            color=INK,
            fontsize=8,
        )
    axes.set_xlabel("int8 layers in order of execution", color=MUTED)
    axes.set_ylabel("SQNR in dB", color=MUTED)
    axes.tick_params(colors=MUTED, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.set_ylim(bottom=min(0, *(layer.sqnr or 0 for layer in layers), 0))
    if layers:
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(SERIES), frameon=False, labelcolor=INK
        )


def _by_operator(layers: Sequence[LayerResult]) -> dict[str, list[LayerResult]]:
    """The layers by operator: the most frequent operators by name, what is left as "others"."""
    counts = Counter(layer.op_type for layer in layers).most_common()
    named = [operator for operator, _ in counts[: len(SERIES) - (len(counts) > len(SERIES))]]
    groups: dict[str, list[LayerResult]] = {operator: [] for operator in named}
    for layer in layers:
        groups.setdefault(layer.op_type if layer.op_type in named else "others", []).append(layer)
    return groups


def _plain(text: str) -> str:
    """Text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
