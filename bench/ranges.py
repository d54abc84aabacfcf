"""What a smaller range of the integers gains in speed and costs in accuracy: `python -m bench.ranges`.

The weights of one matrix product are quantized with qmax from 127 down to 64, the activations with 8 bits and with 7.
The less a sum of products can reach, the more of them can be added in 16 bits, and the larger is the error of rounding.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threadpoolctl import threadpool_limits

import pyq.threadpool  # noqa: F401, for threadpool_limits to limit pyq too
from bench.machine import measure_machine
from bench.tables import machine_text
from pyq.benchmark import Task, WrongResult, measure
from pyq.tensor import QTensor, quantize
from pyq.workloads import DISTRIBUTIONS, MatMul, MatMulData, numpy_matmul, pyq_matmul, random_reals, shape_of

QMAX = (127, 120, 112, 104, 96, 88, 80, 72, 64)
AMAX = (255, 127)  # 8 bits, 7 bits
SHAPE = "256 1024 1024"


class Trade(NamedTuple):
    """What weights of `qmax` and activations up to `amax` give: sqnr in dB, speed in terms of float32."""

    qmax: int
    amax: int
    sqnr: float
    speed: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table for each distribution; 1 when a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranges", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=SHAPE, help=f'"M N K" of the product (default "{SHAPE}")')
    parser.add_argument("--weights", choices=DISTRIBUTIONS, nargs="*", default=DISTRIBUTIONS, help="default: each")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default 1")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each distribution, about (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the random data (default 0)")
    arguments = parser.parse_args(argv)
    shape = shape_of("gemm", arguments.shape.split())
    assert isinstance(shape, MatMul)
    console = Console()
    console.print(machine_text(measure_machine()))
    try:
        with threadpool_limits(arguments.threads):
            for distribution in track(arguments.weights, "distributions", console=console, transient=True):
                found = trades(shape, distribution, arguments.seed, arguments.seconds)
                console.print(table(f"{shape.label}, {distribution} weights", found))
    except WrongResult as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def trades(shape: MatMul, distribution: str, seed: int, seconds: float) -> list[Trade]:
    """Measure all combinations in turn, each checked against exact integers before."""
    rng = np.random.default_rng(seed)
    reals = np.abs(rng.normal(size=(shape.m, shape.k))).astype(np.float32)  # as behind a ReLU
    weights = random_reals(rng, distribution, (shape.k, shape.n))
    activations = {amax: quantize(reals, "uint8", qmax=amax) for amax in AMAX}
    quantized = {qmax: quantize(weights, "int8", axis=1, qmax=qmax) for qmax in QMAX}
    pairs = {(q, a): product(x, w) for q, w in quantized.items() for a, x in activations.items()}
    contenders = [numpy_matmul(pairs[QMAX[0], AMAX[0]])]
    contenders += [pyq_matmul(f"{q} {a}", data, amax=a) for (q, a), data in pairs.items()]
    result = measure(Task(shape.label, shape.macs, shape.bytes, seed, contenders), seconds)
    speeds = {timing.name: result.ratio(timing) for timing in result.timings}
    exact = reals.astype(np.float64) @ weights
    found = []
    for (q, a), data in pairs.items():
        scale = activations[a].scale * quantized[q].scale
        found.append(Trade(q, a, sqnr(exact, scale * data.expected), speeds[f"{q} {a}"]))
    return found


def product(x: QTensor, w: QTensor) -> MatMulData:
    """The exact product; the reals begin at 0, so that zero points are 0."""
    expected = x.data.astype(np.float64) @ w.data
    return MatMulData(x.data, w, expected.astype(np.int32))


def sqnr(exact: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Signal to quantization noise ratio in dB: 10 log10 of the quotient of their powers."""
    return float(10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum()))


def table(title: str, found: Sequence[Trade]) -> Table:
    """A line for each qmax, with the columns of each amax."""
    lines = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("qmax", *(text for amax in AMAX for text in (f"amax {amax}: SQNR", "x float32"))):
        lines.add_column(heading, justify="right")
    for qmax in QMAX:
        here = {trade.amax: trade for trade in found if trade.qmax == qmax}
        cells = (text for a in AMAX for text in (f"{here[a].sqnr:.1f} dB", f"{here[a].speed:.2f}"))
        lines.add_row(str(qmax), *cells)
    return lines


if __name__ == "__main__":
    sys.exit(main())
