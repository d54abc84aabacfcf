"""Pictures of results: bars per shape for each set, and all in one roofline."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.machine import Machine
from pyq.benchmark import Result
from pyq.config import isa
from pyq.files import write_file

FORMATS = ("svg", "png")
plt.rcParams["svg.fonttype"] = "none"  # text as text: half the size
plt.rcParams["svg.hashsalt"] = "pyq"  # the same file for the same data
OWN = "pyq u8s8", "pyq laplace", "pyq trained"  # the contenders that a roofline shows; a run has one of them


def save_plots(folder: Path, results: Mapping[str, Sequence[Result]], machine: Machine, threads: int) -> None:
    """Write a picture for each set and "roofline" into the folder, each as .svg and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in results.items():
        save(folder / name, bars(f"{name}, {threads} thread(s), {isa()}", found))
    save(folder / "roofline", roofline(results, machine, threads))


def save(path: Path, figure: Figure) -> None:
    """Write one picture in each of the formats."""
    for suffix in FORMATS:
        picture = io.BytesIO()
        figure.savefig(picture, format=suffix, dpi=80)
        write_file(path.with_name(f"{path.name}.{suffix}"), picture.getvalue())
    plt.close(figure)


def bars(title: str, results: Sequence[Result]) -> Figure:
    """GOP/s of every contender; those with wrong outputs are hatched."""
    names = list(dict.fromkeys(timing.name for result in results for timing in result.timings))
    colours = dict(zip(names, cycle(matplotlib.color_sequences["tab20"]), strict=False))
    lines = sum(len(result.timings) + 1 for result in results)
    figure, axes = plt.subplots(figsize=(9, 2 + 0.13 * lines), layout="constrained")
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
    return figure


def roofline(results: Mapping[str, Sequence[Result]], machine: Machine, threads: int) -> Figure:
    """pyq's speed over the arithmetic intensity of each shape, below what memory and multipliers allow.

    S. Williams, A. Waterman, D. Patterson, "Roofline: an insightful visual performance model", CACM 52 (2009).
    """
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    found = [result for each in results.values() for result in each]
    peak = machine.peak(isa(), threads)
    intensity = np.geomspace(0.5, 2 * max(result.macs / result.bytes for result in found), 200)
    memory = 2 * intensity * machine.bandwidth
    axes.plot(intensity, memory, "--", color="0.5", label=f"memory, {machine.bandwidth:.1f} GB/s")
    if peak:
        axes.axhline(peak, color="0.5", label=f"multiply peak, {peak:.0f} GOP/s")
        axes.plot(intensity, np.minimum(memory, peak), color="0.2")
    for name, each in results.items():
        points = [(r.macs / r.bytes, r.gops(t)) for r in each for t in r.timings if t.name in OWN]
        axes.plot(*zip(*points, strict=True), "o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(1, 2 * (peak or memory[-1]))
    axes.set_xlabel("multiply-accumulates per byte of operands and result")
    axes.set_ylabel("GOP/s")
    axes.set_title(f"pyq, full range, {threads} thread(s), {isa()}")
    axes.legend(loc="lower right")
    return figure
