"""Every row of the kernel registry, called directly."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyq
from bench.conftest import RATES
from bench.kernels import Rate, rate, works
from bench.machine import Machine
from pyq.config import Kernel


@pytest.mark.parametrize("kernel", [k for k in pyq.kernels_available() if k.runnable], ids=lambda kernel: kernel.name)
def test_kernel(
    kernel: Kernel, seed: int, machine: Machine, benchmark: BenchmarkFixture, pytestconfig: pytest.Config
) -> None:
    """Right, then timed: a call on data in the L1 cache. The rate leaves out the cost of a call from Python."""
    found = Rate(kernel, rate(kernel, seed))
    pytestconfig.stash[RATES].append(found)
    benchmark.group = kernel.operation
    benchmark.extra_info["giga_per_second"] = found.giga
    if machine.ghz:
        benchmark.extra_info["per_cycle"] = found.giga / machine.ghz
    benchmark(works(kernel, seed)[-1].call)
