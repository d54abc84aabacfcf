"""Bars per shape: GOP/s of every contender; those with wrong outputs are hatched."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Patch

from pyq.benchmark import Result
from pyq.files import write_file


def save_plot(path: Path, title: str, results: Sequence[Result]) -> None:
    """Write a picture in the format of the suffix (.png, .svg, .pdf). ValueError for a format that is not known."""
    names = list(dict.fromkeys(timing.name for result in results for timing in result.timings))
    colours = dict(zip(names, cycle(matplotlib.color_sequences["tab10"]), strict=False))
    lines = sum(len(result.timings) + 1 for result in results)
    figure, axes = plt.subplots(figsize=(9, 2 + 0.18 * lines), layout="constrained")
    ticks = []
    first = 0  # line of the picture that the shape's first bar is on
    for result in results:
        ticks.append(first + (len(result.timings) - 1) / 2)
        for line, timing in enumerate(result.timings, first):
            hatch = "////" if timing.wrong else None
            axes.barh(line, result.gops(timing), color=colours[timing.name], edgecolor="white", hatch=hatch)
        first += len(result.timings) + 1
    axes.set_yticks(ticks, [result.label for result in results])
    axes.set_ylim(lines - 1, -1)
    axes.set_xlabel("GOP/s (hatched: some outputs are wrong)")
    axes.set_title(title)
    figure.legend(
        handles=[Patch(color=colours[name], label=name) for name in names], loc="outside lower center", ncols=3
    )
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix.lstrip(".") or "png", dpi=120)
    plt.close(figure)
    write_file(path, picture.getvalue())
