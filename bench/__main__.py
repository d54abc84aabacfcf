"""``python -m bench``: int8 against float32 on this machine, in one run, the runtimes in turn, medians.

Each result is checked against exact integers before it is timed; a wrong one ends the run with its seed. Times are
noisy, so read the ratios. On a machine where OPENBLAS_CORETYPE is set, unset it (and OPENBLAS_L2_SIZE) for this
process: an old value slows NumPy's float32, which is the baseline here.
"""

from __future__ import annotations

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

import pyq
from bench.products import SHAPES, Product, contenders
from pyq.config import config
from pyq.timing import milliseconds


def main() -> None:
    """Time the products asked for and print a table."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of every runtime (default 1)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which all take their turn (default 15)")
    parser.add_argument("--seed", type=int, default=0, help="of the random matrices (default 0)")
    parser.add_argument("--shape", nargs=3, type=int, metavar=("M", "N", "K"), action="append", help="instead of all")
    arguments = parser.parse_args()
    pyq.set_num_threads(arguments.threads)
    shapes = [tuple(shape) for shape in arguments.shape] if arguments.shape else SHAPES
    with threadpool_limits(arguments.threads):
        rows = [(shape, time_product(shape, arguments.seed, arguments.rounds)) for shape in shapes]
    Console().print(table(rows, arguments.threads))


def time_product(shape: tuple[int, int, int], seed: int, rounds: int) -> dict[str, float]:
    """Milliseconds of each contender for one product of this shape."""
    product = Product.random(shape, np.random.default_rng(seed))
    runs = contenders(product)
    for name, run in runs.items():
        if not run.exact():
            raise SystemExit(f"{name} is wrong for M, N, K = {shape}, seed {seed}")
        run.call()
    return milliseconds({name: run.call for name, run in runs.items()}, rounds)


def table(rows: list[tuple[tuple[int, int, int], dict[str, float]]], threads: int) -> Table:
    """GMAC/s of each contender, and its ratio to float32."""
    names = list(rows[0][1])
    title = f"Matrix products, {threads} thread(s), {config()['isa']}: GMAC/s (times float32)"
    result = Table(title=title)
    result.add_column("M, N, K")
    for name in names:
        result.add_column(name, justify="right")
    for shape, times in rows:
        giga = np.prod(shape) / 1e6
        cells = [f"{giga / times[name]:.1f} ({times[names[0]] / times[name]:.2f})" for name in names]
        result.add_row(", ".join(map(str, shape)), *cells)
    return result


if __name__ == "__main__":
    main()
