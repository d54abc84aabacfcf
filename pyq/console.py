"""What the commands show on the terminal while they work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from pyq.benchmark import Result, mean_ratios

if TYPE_CHECKING:
    from pyq.onnx.profile import StepTime
    from pyq.quantization.calibration import Progress as Callback
    from pyq.quantization.report import Report


@contextmanager
def progress(console: Console) -> Iterator[Callback]:
    """Show a bar per activity while the block runs; yields a callback (steps done, in all, activity)."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as display:

        def update(done: int, total: int | None, activity: str) -> None:
            if activity not in bars:
                bars[activity] = display.add_task(escape(activity), total=total)
            display.update(bars[activity], completed=done, total=total)

        yield update


def layers_table(report: Report, worst: int) -> Table:
    """The int8 layers of a report with the lowest SQNR; the title says whether all layers are exact."""
    wrong = sum(not layer.exact for layer in report.layers)
    verdict = f"{wrong} NOT exact" if wrong else "all exact"
    title = f"{len(report.layers)} int8 layers, {verdict}; the worst by SQNR"
    table = Table("layer", "operator", title=title)
    table.add_column("SQNR", justify="right")
    table.add_column("kernel")
    for layer in report.layers[:worst]:
        sqnr = "" if layer.sqnr is None else f"{layer.sqnr:.1f} dB"
        exact = "exact" if layer.exact else f"{layer.mismatches} of {layer.elements} differ"
        table.add_row(escape(layer.output), layer.op_type, sqnr, exact)
    return table


def speed_table(title: str, results: Sequence[Result], peak: float | None = None, ghz: float | None = None) -> Table:
    """Measured tasks, a line per contender, and the geometric means of the ratios to float32.

    peak: GOP/s that the multiplier can do, of which to show percents. ghz: the clock, to show multiply-accumulates
    per cycle.
    """
    columns = (Column(heading, no_wrap=True) for heading in ("task", "contender"))
    table = Table(*columns, title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("ms", "GOP/s", "x float32", "wrong", *["of peak"] * bool(peak), *["MAC/cycle"] * bool(ghz)):
        table.add_column(heading, justify="right")
    for result in results:
        for timing in result.timings:
            gops = result.gops(timing)
            cells = [f"{timing.milliseconds:.3f}", f"{gops:.1f}", f"{result.ratio(timing):.2f}", str(timing.wrong)]
            if peak:
                cells.append("" if timing.is_float else f"{gops / peak:.0%}")
            if ghz:
                cells.append(f"{gops / 2 / ghz:.1f}")
            table.add_row(result.label if timing is result.timings[0] else "", escape(timing.name), *cells)
        table.add_section()
    for place, (name, ratio) in enumerate(mean_ratios(results).items()):
        table.add_row("" if place else "geometric mean", escape(name), "", "", f"{ratio:.2f}")
    return table


def profile_table(title: str, steps: Sequence[StepTime], most: int) -> Table:
    """The `most` steps of a model that take longest, then what is left, with their shares of the sum."""
    whole = sum(step.milliseconds for step in steps)
    table = Table("step", "operator", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("ms", "share"):
        table.add_column(heading, justify="right")
    ranked = sorted(steps, key=lambda step: -step.milliseconds)
    for step in ranked[:most]:
        share = f"{step.milliseconds / whole:.1%}"
        table.add_row(escape(step.output), step.op_type, f"{step.milliseconds:.3f}", share)
    if rest := ranked[most:]:
        left = sum(step.milliseconds for step in rest)
        table.add_row(f"{len(rest)} more", "", f"{left:.3f}", f"{left / whole:.1%}")
    return table
