"""int8 kernels on this machine, in one run: the contenders in turn, medians, float32 of the same run as the baseline.

Every result is checked against exact integers before it is timed; a wrong one ends the run with its seed. Other
libraries' wrong outputs are counted. The machine is never quiet: read ratios, not times. Where OPENBLAS_CORETYPE is
set, unset it (and OPENBLAS_L2_SIZE) for this process: an old value slows NumPy's float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits

import pyq.threadpool  # noqa: F401, for threadpool_limits to limit pyq too
from bench.kernels import Rate, peak, rates
from bench.suites import PARTS, Options, tasks
from pyq.benchmark import Result, WrongResult, measure, save_json
from pyq.config import config
from pyq.console import speed_table
from pyq.workloads import DISTRIBUTIONS


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a result that has to be right is wrong."""
    arguments = parse(argv)
    try:
        with threadpool_limits(arguments.threads):
            run(arguments, Console())
    except WrongResult as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("part", nargs="?", choices=("all", "kernels", *PARTS, "peers"), default="all")
    add("--full", action="store_true", help="all shapes, not the selection of a few minutes")
    add("--only", default="", metavar="TEXT", help="only shapes whose label contains this")
    add("--weights", choices=DISTRIBUTIONS, default=DISTRIBUTIONS[0], help="with peers (default laplace)")
    add("--threads", type=int, default=1, metavar="N", help="of every library (default 1; peers: always 1)")
    add("--seconds", type=float, default=1.0, help="to time each shape for, about (default 1)")
    add("--seed", type=int, default=0, help="of the random data (default 0)")
    add("--ghz", type=float, help="the core's clock, to show multiply-accumulates per cycle")
    add("--json", type=Path, metavar="FILE", help="write the shapes' results")
    add("--plot", type=Path, metavar="FILE", help="draw them as bars: .png, .svg or .pdf")
    arguments = parser.parse_args(argv)
    if arguments.part == "peers" and arguments.threads != 1:
        parser.error("peers: only with one thread; pools of several libraries in one process take each other's cores")
    return arguments


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Measure, print the tables and write the files."""
    found = rates(arguments.seed)
    if arguments.part in ("all", "kernels"):
        console.print(kernels_table(found))
    results: list[Result] = []
    for part in PARTS:
        if arguments.part in ("all", "peers", part):
            results += run_part(part, arguments, found, console)
    if arguments.json:
        save_json(arguments.json, results)
    if arguments.plot:
        from bench.plot import save_plot

        save_plot(arguments.plot, f"{arguments.threads} thread(s), {config()['isa']}", results)


def run_part(part: str, arguments: argparse.Namespace, found: list[Rate], console: Console) -> list[Result]:
    """Measure the shapes of "gemm", "conv" or "depthwise" and print their table."""
    options = Options(
        seed=arguments.seed,
        threads=arguments.threads,
        full=arguments.full,
        only=arguments.only,
        peers=arguments.part == "peers",
        distribution=arguments.weights,
    )
    pending = list(tasks(part, options))
    results = [measure(make(), arguments.seconds) for make in track(pending, part, console=console, transient=True)]
    operation = "depthwise" if part == "depthwise" else "gemm"
    ceiling = 2 * peak(found, operation, arguments.seed) * arguments.threads
    title = f"{part}, {arguments.threads} thread(s), {config()['isa']}, multiply peak {ceiling:.0f} GOP/s"
    if results:
        console.print(speed_table(title, results, ceiling, arguments.ghz))
    return results


def kernels_table(found: list[Rate]) -> Table:
    """A line per row of the registry; its rate in percent of the best kernel for the same work and instruction set."""
    title = "Kernels on data in the L1 cache"
    table = Table("kernel", "counts", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("G/s", "of the best"):
        table.add_column(heading, justify="right")
    for rate in found:
        kernel = rate.kernel
        best = max(r.giga for r in found if (r.kernel.isa, r.kernel.layout) == (kernel.isa, kernel.layout))
        table.add_row(kernel.name, "MAC" if kernel.layout else "outputs", f"{rate.giga:.1f}", f"{rate.giga / best:.0%}")
    return table


if __name__ == "__main__":
    sys.exit(main())
