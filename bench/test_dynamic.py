"""Linear layers with dynamic quantization, beside float32 and ONNX Runtime."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.conftest import RESULTS
from bench.dynamic import LAYERS, dynamic_task
from pyq.benchmark import Contender, measure
from pyq.workloads import MatMul


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.label)
def test_layer(layer: MatMul, seed: int, benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> None:
    """Right, then timed in turn."""
    task = dynamic_task(layer, seed, pytestconfig.getoption("threads"))
    pytestconfig.stash[RESULTS].setdefault("dynamic", []).append(measure(task, seconds=0.3))
    [own] = [each for each in task.contenders if each.name == "pyq matmul_dynamic"]
    assert isinstance(own, Contender)
    benchmark.group = "dynamic layers"
    benchmark(own.call)
