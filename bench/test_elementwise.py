"""Operations that memory bounds, beside a copy of as many bytes."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import COPIES
from bench.elementwise import OPERATIONS, Operation, copies
from pyq.benchmark import Contender, measure


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_operation(operation: Operation, seed: int, benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> None:
    """Right to the bit, then timed in turn with the copy."""
    task = operation.task(seed)
    own = task.contenders[-1]
    assert isinstance(own, Contender)
    found = measure(task, seconds=0.1)
    pytestconfig.stash[COPIES].append(found)
    benchmark.group = "beside a copy"
    benchmark.extra_info["copies"] = copies(found)
    benchmark(own.call)
