"""Products and convolutions of every set of shapes, beside float32."""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import RESULTS
from bench.machine import Machine
from bench.sets import NOT_INSTALLED, SETS, chosen
from bench.suites import own_task
from bench.trained import TrainedConv, TrainedMatMul
from pyq.benchmark import Contender, Result, Task, Timing, checked
from pyq.config import isa
from pyq.workloads import Conv, MatMul

TINY = (
    MatMul(1, 1, 1),
    Conv(1, 1, 1, 1),
    TrainedMatMul(1, 1, 1, reals=np.ones((1, 1), np.float32)),
    TrainedConv(1, 1, 1, 1, reals=np.ones((1, 1, 1, 1), np.float32)),
)
"""A shape of each kind: what takes part in it takes part in all of the kind."""


@cache
def names() -> dict[type, list[str]]:
    """The contenders of a kind of shape."""
    return {type(shape): [contender.name for contender in own_task(shape, 0, 1).contenders] for shape in TINY}


@lru_cache(maxsize=1)
def task_of_shape(shape: MatMul | Conv, seed: int, threads: int) -> Task:
    """Kept until the next shape's turn: the data of all would fill the memory."""
    return own_task(shape, seed, threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for every contender of every shape."""
    cases = []
    for name in SETS:
        try:
            shapes = chosen(name, metafunc.config.getoption("full"))
        except NOT_INSTALLED as error:
            print(f"{name} is left out: {error}")
            continue
        for shape in shapes:
            cases += [pytest.param(name, shape, who, id=f"{name}-{shape.label}-{who}") for who in names()[type(shape)]]
    metafunc.parametrize(("group", "shape", "contender_name"), cases)


def test_speed(
    group: str,
    shape: MatMul | Conv,
    contender_name: str,
    seed: int,
    machine: Machine,
    benchmark: BenchmarkFixture,
    pytestconfig: pytest.Config,
) -> None:
    """Right, then timed."""
    threads = pytestconfig.getoption("threads")
    task = task_of_shape(shape, seed, threads)
    [contender] = [c for c in task.contenders if c.name == contender_name]
    assert isinstance(contender, Contender)
    check = checked(task, contender)
    benchmark.group = f"{group}, {shape.label}"
    benchmark(contender.call)
    if benchmark.stats is None:  # --benchmark-disable: only checked
        return
    timing = Timing(contender_name, benchmark.stats["median"] * 1e3, check.wrong, check.outputs, check.is_float)
    result = Result(shape.label, shape.macs, shape.bytes, seed, (timing,))
    gops, peak = result.gops(timing), machine.peak(isa(), threads)
    benchmark.extra_info["gops"] = gops
    if machine.ghz:
        benchmark.extra_info["mac_per_cycle"] = gops / 2 / machine.ghz
    if peak:
        benchmark.extra_info["of_peak"] = gops / peak
    remember(pytestconfig.stash[RESULTS].setdefault(group, []), result)


def remember(results: list[Result], result: Result) -> None:
    """Add the timing to those of its shape."""
    if results and results[-1].label == result.label:
        result = Result(result.label, result.macs, result.bytes, result.seed, results.pop().timings + result.timings)
    results.append(result)
