"""How long packing takes: a large weight, for each instruction set that weights can be packed for."""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import pyq
from bench.conftest import PACKING
from bench.tables import PackingTime
from pyq.backends import ISA_NAMES
from pyq.workloads import DISTRIBUTIONS, MatMul

LARGE = MatMul(1, 4096, 4096)


@pytest.mark.parametrize("isa", ISA_NAMES[1:])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_packing(
    distribution: str, isa: str, seed: int, benchmark: BenchmarkFixture, pytestconfig: pytest.Config
) -> None:
    """The integers come back out of the panels, and what was proved is proved again; then timed."""
    weights = LARGE.weights(np.random.default_rng(seed), distribution)
    packed = pyq.pack(weights, isa=isa)
    pyq.verify_certificate(packed)
    assert np.array_equal(packed.unpack(), weights.data), f"seed {seed}"
    benchmark.group = "packing"
    benchmark.extra_info["steps"] = packed.certificate.steps
    benchmark.pedantic(pyq.pack, (weights,), {"isa": isa}, rounds=3)
    if benchmark.stats is not None:  # it is with --benchmark-disable
        time = PackingTime(distribution, isa, benchmark.stats["median"], packed.certificate.steps)
        pytestconfig.stash[PACKING].append(time)
