"""The pytest-benchmark suites: their options, what they share, and the tables after the last of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from threadpoolctl import threadpool_limits

import pyq.threadpool  # noqa: F401, for threadpool_limits to limit pyq too
from bench.kernels import Rate
from bench.machine import Machine, measure_machine
from bench.tables import PackingTime, copies_table, kernels_table, machine_text, packing_table
from pyq.benchmark import Result
from pyq.config import isa
from pyq.console import speed_table

RATES = pytest.StashKey[list[Rate]]()
COPIES = pytest.StashKey[list[Result]]()
RESULTS = pytest.StashKey[dict[str, list[Result]]]()
PACKING = pytest.StashKey[list[PackingTime]]()
MACHINE = pytest.StashKey[Machine]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the suites."""
    group = parser.getgroup("pyq")
    group.addoption("--full", action="store_true", help="all shapes, not the selection of a few minutes")
    group.addoption("--threads", type=int, default=1, help="of every library (default 1)")
    group.addoption("--seed", type=int, default=0, help="of the random data (default 0)")


def pytest_configure(config: pytest.Config) -> None:
    """What the tests fill in, and the machine that they run on."""
    config.stash[RATES], config.stash[COPIES], config.stash[RESULTS] = [], [], {}
    config.stash[PACKING] = []
    with threadpool_limits(config.getoption("threads")):
        config.stash[MACHINE] = measure_machine()


@pytest.fixture(autouse=True, scope="session")
def limited_threads(pytestconfig: pytest.Config) -> Iterator[None]:
    """As many threads as are asked for, in every library."""
    with threadpool_limits(pytestconfig.getoption("threads")):
        yield


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    """Of the random data; a failing test names it."""
    value: int = pytestconfig.getoption("seed")
    return value


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Machine:
    """Measured at the start."""
    return pytestconfig.stash[MACHINE]


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Statistics only: every single time would make a file of hundreds of megabytes."""
    for benchmark in output_json["benchmarks"]:
        benchmark["stats"].pop("data", None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The tables."""
    console = Console(file=terminalreporter._tw._file, width=100)
    machine, threads, rates = config.stash[MACHINE], config.getoption("threads"), config.stash[RATES]
    beside_copies = config.stash[COPIES]
    console.print(machine_text(machine))
    if rates:
        console.print(kernels_table(rates, machine))
    if packing := config.stash[PACKING]:
        console.print(packing_table(packing, threads))
    if beside_copies:
        console.print(copies_table(beside_copies))
    for name, results in config.stash[RESULTS].items():
        title = f"{name}, {threads} thread(s), {isa()}"
        console.print(speed_table(title, results, machine.peak(isa(), threads), machine.ghz))
