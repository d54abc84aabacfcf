"""int8 kernels on this machine, in one run: the contenders in turn, medians, float32 of the same run as the baseline.

Every result is checked against exact integers before it is timed; a wrong one ends the run with its seed. With
--peers other libraries take part, each in a process of its own, and their wrong outputs are counted. The machine is
never quiet: read ratios, not times. Where OPENBLAS_CORETYPE is set, unset it (and OPENBLAS_L2_SIZE) for this process:
an old value slows NumPy's float32.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.progress import track
from threadpoolctl import threadpool_limits

import pyq.threadpool  # noqa: F401, for threadpool_limits to limit pyq too
from bench.kernels import rates
from bench.machine import Machine, measure_machine
from bench.peers import LIBRARIES, installed
from bench.processes import Worker, workers
from bench.sets import NOT_INSTALLED, SETS, chosen, read_shapes
from bench.suites import own_task, peer_task
from bench.tables import kernels_table, machine_text, peers_table
from pyq.benchmark import Result, WrongResult, measure
from pyq.config import config, isa
from pyq.console import speed_table
from pyq.files import write_file
from pyq.workloads import DISTRIBUTIONS, Conv, MatMul

KERNELS = "kernels"
WIDTH = 100  # of the tables where they are not shown on a terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; 1 when a result that has to be right is wrong."""
    arguments = parse(argv)
    libraries = installed() if arguments.peers else []
    try:
        threads = arguments.threads
        with pinned(threads), threadpool_limits(threads), workers(libraries, threads) as started:
            run(arguments, started, Console(width=None if sys.stdout.isatty() else WIDTH))
    except WrongResult as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, on as many cores as threads: all on the same.

    One core may be slower than another, as where it shares its multipliers with something else; a process tends to stay
    where it is, so a library would be slow for a whole run. The last cores, since the first often serve interrupts.
    """
    if not hasattr(os, "sched_setaffinity"):  # there is none on macOS
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[-threads:])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    choices = (KERNELS, *SETS)
    add("sets", nargs="*", metavar="SET", help=f"what to time: {', '.join(choices)} (default: all)")
    add("--shapes", type=Path, metavar="FILE", help="your own shapes; bench/shapes/squares.txt tells the form")
    add("--only", default="", metavar="TEXT", help="only shapes whose label contains this")
    add("--full", action="store_true", help="all shapes, not the selection of a few minutes")
    add("--peers", action="store_true", help="beside other libraries, instead of float32 alone")
    add("--weights", choices=DISTRIBUTIONS, default=DISTRIBUTIONS[0], help="with --peers (default laplace)")
    add("--threads", type=int, default=1, metavar="N", help="of every library (default 1)")
    add("--seconds", type=float, default=1.0, help="to time each shape for, about (default 1)")
    add("--seed", type=int, default=0, help="of the random data (default 0)")
    add("--json", type=Path, metavar="FILE", help="write the results")
    add("--plot", type=Path, metavar="FOLDER", help="draw bars for each set, and a roofline: .svg and .png files")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.sets if name not in choices]
    if unknown:
        parser.error(f"SET: got {unknown[0]!r}, expected {', '.join(choices)}")
    if not arguments.sets and not arguments.shapes:
        arguments.sets = list(SETS if arguments.peers else choices)
    return arguments


def run(arguments: argparse.Namespace, started: Sequence[Worker], console: Console) -> None:
    """Measure, print the tables and write the files."""
    machine = measure_machine()
    console.print(machine_text(machine))
    if arguments.peers:
        console.print(peers_text())
    if KERNELS in arguments.sets:
        console.print(kernels_table(rates(arguments.seed), machine))
    results: dict[str, list[Result]] = {}
    for name, shapes in selected(arguments, console).items():
        results[name] = run_set(name, shapes, arguments, started, machine, console)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "config": config(),
            "machine": asdict(machine),
            "sets": {name: [asdict(result) for result in found] for name, found in results.items()},
        }
        write_file(arguments.json, json.dumps(document, indent=1).encode())
    if arguments.plot:
        from bench.plot import save_plots

        save_plots(arguments.plot, results, machine, arguments.threads)


def peers_text() -> str:
    """The versions of the other libraries, and which are not installed."""
    found, missing = [], []
    for package in LIBRARIES.values():
        try:
            found.append(f"{package} {version(package.replace('_', '-'))}")
        except PackageNotFoundError:
            missing.append(package)
    left_out = f"; not installed and left out: {', '.join(missing)}" if missing else ""
    return f"Beside {', '.join(found)}{left_out}"


def selected(arguments: argparse.Namespace, console: Console) -> dict[str, list[MatMul | Conv]]:
    """The shapes of each set that is asked for, those that have any."""
    sets: dict[str, list[MatMul | Conv]] = {}
    for name in arguments.sets:
        if name == KERNELS:
            continue
        try:
            sets[name] = chosen(name, arguments.full, arguments.only)
        except NOT_INSTALLED as error:
            console.print(f"{name} is left out: {error}")
    if arguments.shapes:
        sets[arguments.shapes.stem] = list(read_shapes(arguments.shapes))
    return {name: shapes for name, shapes in sets.items() if shapes}


def run_set(
    name: str,
    shapes: Sequence[MatMul | Conv],
    arguments: argparse.Namespace,
    started: Sequence[Worker],
    machine: Machine,
    console: Console,
) -> list[Result]:
    """Measure the shapes of a set and print their table."""
    results = []
    for shape in track(shapes, name, console=console, transient=True):
        if arguments.peers:
            task = peer_task(shape, arguments.seed, arguments.weights, started)
        else:
            task = own_task(shape, arguments.seed, arguments.threads)
        results.append(measure(task, arguments.seconds))
    title = f"{name}, {arguments.threads} thread(s), {isa()}"
    console.print(speed_table(title, results, machine.peak(isa(), arguments.threads), machine.ghz))
    if arguments.peers:
        console.print(peers_table(name, results))
    return results


if __name__ == "__main__":
    sys.exit(main())
