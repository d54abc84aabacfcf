"""What all tests share: the backends, and random numbers whose seed a failing test prints.

A fresh seed for every run widens what is covered; PYQ_TEST_SEED repeats a run that failed.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import pyq
from pyq._core import lib
from pyq.backends import ISA_NAMES

# Nothing about time is asserted, drawing examples on a busy machine included.
NOT_ASSERTED = [HealthCheck.too_slow]
settings.register_profile("pyq", deadline=None, max_examples=50, print_blob=True, suppress_health_check=NOT_ASSERTED)
settings.load_profile("pyq")


@pytest.fixture(params=pyq.available_backends())
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once on every backend."""
    with pyq.use_backend(request.param):
        yield request.param


ISAS = ISA_NAMES[1 : lib.pyq_get_isa() + 1] or ISA_NAMES[:1]


@pytest.fixture(scope="module", params=ISAS)
def each_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a module once for each SIMD instruction set of this CPU: what weights are packed for, and the C kernels."""
    before = lib.pyq_get_isa()
    lib.pyq_set_isa(ISA_NAMES.index(request.param))
    yield request.param
    lib.pyq_set_isa(before)


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator; its seed is in the captured output, which pytest shows when the test fails."""
    seed = int(os.environ.get("PYQ_TEST_SEED", secrets.randbits(32)))
    print(f"PYQ_TEST_SEED={seed}")
    return np.random.default_rng(seed)
