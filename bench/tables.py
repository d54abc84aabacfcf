"""Tables on the terminal that belong to the benchmark alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from bench.elementwise import copies
from bench.kernels import Rate
from bench.machine import Machine
from pyq.benchmark import Result, Timing


def machine_text(machine: Machine) -> str:
    """The machine in a line."""
    clock = f"{machine.ghz:.2f} GHz, " if machine.ghz else ""
    peaks = "".join(f"{name} multiply peak {peak:.0f} GOP/s, " for name, peak in machine.peaks.items())
    sums = f"avx2 pairs with their sums {machine.with_sums:.0f} GOP/s, " if machine.with_sums else ""
    return f"One core: {clock}{peaks}{sums}memory {machine.bandwidth:.1f} GB/s"


class PackingTime(NamedTuple):
    """How long it took to pack weights of a distribution for an instruction set, and the steps that came out."""

    distribution: str
    isa: str
    seconds: float
    steps: dict[str, int]


def packing_table(found: Sequence[PackingTime], threads: int) -> Table:
    """A line per distribution and instruction set."""
    title = f"Packing a weight of 4096x4096, {threads} thread(s)"
    table = Table("weights", "for", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("seconds", justify="right")
    table.add_column("steps")
    for time in found:
        steps = ", ".join(f"{layout} {count}" for layout, count in time.steps.items())
        table.add_row(time.distribution, time.isa, f"{time.seconds:.2f}", steps)
    return table


def kernels_table(found: Sequence[Rate], machine: Machine) -> Table:
    """A line per row of the registry: its rate, per cycle, and in percent of the peak of its instruction set."""
    title = "Kernels on data in the L1 cache"
    table = Table("kernel", "counts", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("G/s", "per cycle", "of peak"):
        table.add_column(heading, justify="right")
    for rate in found:
        kernel, peak = rate.kernel, machine.peak(rate.kernel.isa, 1)
        per_cycle = f"{rate.giga / machine.ghz:.1f}" if machine.ghz else ""
        products = kernel.operation != "requantize"
        share = f"{2 * rate.giga / peak:.0%}" if peak and products else ""
        table.add_row(kernel.name, "MAC" if products else "outputs", f"{rate.giga:.1f}", per_cycle, share)
    return table


def copies_table(results: Sequence[Result]) -> Table:
    """A line per operation: its time, and how many copies of as many bytes that is."""
    title = "Beside a copy of as many bytes"
    table = Table("operation", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("us", "GB/s", "copies"):
        table.add_column(heading, justify="right")
    for result in results:
        milliseconds = result.timings[-1].milliseconds
        rate = result.bytes / milliseconds / 1e6
        table.add_row(result.label, f"{milliseconds * 1e3:.0f}", f"{rate:.1f}", f"{copies(result):.1f}")
    return table


def peers_table(name: str, results: Sequence[Result]) -> Table:
    """For each of pyq's contenders the geometric mean, over the shapes, of its speed relative to three others."""
    title = f"{name}: how many times as fast as the fastest of"
    wide = len(title)
    table = Table("contender", title=title, min_width=wide, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    rivals: dict[str, Callable[[Timing], bool]] = {
        "float32": lambda timing: timing.is_float,
        "exact int8": lambda timing: not timing.is_float and not timing.wrong,
        "all others": lambda timing: True,
    }
    for heading in rivals:
        table.add_column(heading, justify="right")
    for contender in dict.fromkeys(t.name for result in results for t in result.timings if is_own(t)):
        ratios = (mean_ratio(results, contender, accepts) for accepts in rivals.values())
        table.add_row(contender, *(f"{ratio:.2f}" for ratio in ratios))
    return table


def is_own(timing: Timing) -> bool:
    """Whether it is pyq's."""
    return timing.name.startswith("pyq")


def mean_ratio(results: Iterable[Result], contender: str, accepts: Callable[[Timing], bool]) -> float:
    """The geometric mean of the fastest accepted other's time over the contender's; NaN when there is no other."""
    logs = []
    for result in results:
        times = {timing.name: timing.milliseconds for timing in result.timings}
        others = [t.milliseconds for t in result.timings if not is_own(t) and accepts(t)]
        if others and contender in times:
            logs.append(np.log(min(others) / times[contender]))
    return float(np.exp(np.mean(logs))) if logs else float("nan")
