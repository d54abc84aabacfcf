"""How many times as fast pyq is on several threads as on one, beside what the cores give at the same moment.

    python -m bench.scaling resnet50 squares --threads 2

The cores of a virtual machine may for a while be two hardware threads of one core, or be shared with others: then two
threads hardly multiply more than one, whatever they run. So in each round a loop on registers (csrc/peak.c), which
nothing but the cores can slow, runs on one thread and on all of them, before and after the shape does. The last two
columns are of the rounds in which it found the cores free both times: 0.95 times as much for each thread as for one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import pyq
from bench.sets import SETS, chosen
from bench.trained import TrainedConv, TrainedMatMul
from pyq.backends import ISA_NAMES
from pyq.benchmark import checked, enough, estimate
from pyq.config import isa
from pyq.timing import sample
from pyq.workloads import DISTRIBUTIONS, Conv, MatMul, task_of

ITERATIONS = 1_000_000  # of the loop on registers: milliseconds, beside which it is nothing to wake a thread
FREE = 0.95  # of as many times as there are threads: what cores that are free give on registers


class Rounds(NamedTuple):
    """Of a shape, for each round: milliseconds on one thread and on all; how many times as much the cores gave."""

    label: str
    one: NDArray[np.float64]
    all: NDArray[np.float64]
    cores: NDArray[np.float64]

    def ratio(self, counted: NDArray[np.bool_] | slice = slice(None)) -> float:
        """Of the medians of the rounds that count; NaN when there are none."""
        one, several = self.one[counted], self.all[counted]
        return float(np.median(one) / np.median(several)) if len(one) else float("nan")

    def free(self, threads: int) -> NDArray[np.bool_]:
        """Rounds in which the cores were."""
        return self.cores >= FREE * threads


def main(argv: Sequence[str] | None = None) -> int:
    """Time the sets that are asked for, and print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sets", nargs="+", metavar="SET", choices=SETS, help=f"of {', '.join(SETS)}")
    add("--threads", type=int, default=2, metavar="N", help="beside one (default 2)")
    add("--only", default="", metavar="TEXT", help="only shapes whose label contains this")
    add("--rounds", type=int, default=100, metavar="N", help="of each shape (default 100)")
    add("--seed", type=int, default=0, help="of the random data (default 0)")
    arguments = parser.parse_args(argv)
    shapes = [shape for name in arguments.sets for shape in chosen(name, True, arguments.only)]
    console = Console(width=None if sys.stdout.isatty() else 100)
    measured = (rounds_of(shape, arguments) for shape in track(shapes, console=console, transient=True))
    console.print(table(list(measured), arguments.threads))
    return 0


def rounds_of(shape: MatMul | Conv, arguments: argparse.Namespace) -> Rounds:
    """WrongResult when a result is wrong on either number of threads."""
    threads = arguments.threads
    distribution = "trained" if isinstance(shape, (TrainedMatMul, TrainedConv)) else DISTRIBUTIONS[0]
    task = task_of(shape, arguments.seed, [distribution])
    [own] = [contender for contender in task.contenders if contender.name == f"pyq {distribution}"]
    times: list[tuple[float, float, float]] = []
    restored = pyq.get_num_threads()
    try:
        repeats = {}
        for count in (1, threads):
            pyq.set_num_threads(count)
            checked(task, own)
            repeats[count] = enough(estimate(own))
        with ThreadPoolExecutor(threads) as pool:
            after = cores(pool, threads)
            for _ in range(arguments.rounds):
                before = after
                one, several = (on_threads(count, partial(own.sample, repeats[count])) for count in (1, threads))
                after = cores(pool, threads)
                times.append((one, several, min(before, after)))
    finally:
        pyq.set_num_threads(restored)
    return Rounds(shape.label, *np.array(times).T)


def on_threads(count: int, take: Callable[[], tuple[float, float]]) -> float:
    """Milliseconds of a call on so many threads."""
    pyq.set_num_threads(count)
    return take()[0]


def cores(pool: ThreadPoolExecutor, threads: int) -> float:
    """How many times as much they multiply as one of them."""
    return threads * registers(pool, 1) / registers(pool, threads)


def registers(pool: ThreadPoolExecutor, threads: int) -> float:
    """Milliseconds in which each of so many threads runs the loop on registers."""
    from pyq._core import lib  # only the C backend has it

    loop = partial(lib.pyq_multiplies, ISA_NAMES.index(isa()), ITERATIONS)
    return sample(lambda: [each.result() for each in [pool.submit(loop) for _ in range(threads)]]).milliseconds


def table(measured: Sequence[Rounds], threads: int) -> Table:
    """A line per shape, and the geometric means."""
    title = f"pyq on {threads} threads against one, {isa()}"
    made = Table("shape", title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("us on one", f"on {threads}", "times", "the cores", "rounds free", "times then"):
        made.add_column(heading, justify="right")
    for rounds in measured:
        free = rounds.free(threads)
        times = (f"{1e3 * np.median(taken):.0f}" for taken in (rounds.one, rounds.all))
        ratios = (f"{rounds.ratio():.2f}", f"{np.median(rounds.cores):.2f}", f"{free.mean():.0%}")
        made.add_row(rounds.label, *times, *ratios, f"{rounds.ratio(free):.2f}")
    every = geometric_mean(rounds.ratio() for rounds in measured)
    then = geometric_mean(rounds.ratio(rounds.free(threads)) for rounds in measured)
    made.add_row("geometric mean", "", "", f"{every:.2f}", "", "", f"{then:.2f}")
    return made


def geometric_mean(ratios: Iterable[float]) -> float:
    """Of those that are known; NaN if none is."""
    known = [ratio for ratio in ratios if not np.isnan(ratio)]
    return float(np.exp(np.mean(np.log(known)))) if known else float("nan")


if __name__ == "__main__":
    sys.exit(main())
