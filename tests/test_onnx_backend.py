"""pyq as an ONNX backend: onnx's own suite (operators, small networks, nine real architectures), and the interface.

The suite compares with a tolerance of its own for floats and exactly for integers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.backend.base import Backend
from onnx.backend.test import BackendTest
from onnx.backend.test.loader import load_model_tests

import pyq
import pyq.onnx.backend as backend
from pyq.onnx.backend import PyqBackend

# What pyq does not do. These tests are expected to fail: one that passes makes the suite fail, and has to go from here.
GAPS = {
    "test_gradient_of_": "training operators",
    "test_if_opt_cpu": "control flow runs in onnx.reference, whose If confuses an optional with its value",
    "test_loop16_seq_none_cpu": "control flow runs in onnx.reference, whose Loop does not know optional sequences",
    "test_range_.*_expanded_cpu": "control flow runs in onnx.reference, whose Loop gives an output of a wrong shape",
    "test_scan_sum_cpu": "Scan of opset 8, which has a batch dimension",
    "test_attention_.*bf16_expanded_cpu": "bfloat16 arithmetic ends in float32",
    "test_group_normalization_(example|epsilon)_cpu": "operators that only exist as functions in the ONNX standard",
    "test_PReLU_.*_multiparam_cpu": "PRelu of opset 6, whose slope is per channel and not broadcast",
}
# Tests whose outcome pyq does not decide.
UNDECIDED = {
    "test_bernoulli": "the expected outputs are random numbers",
    "test_squeezenet_cpu": "1000 equal logits near 1e10: softmax shows the last bits of BLAS, which differ between "
    "columns at the edge of its tiles and with its number of threads",
}


def suite_of_onnx() -> dict[str, type]:
    """The test cases of the suite, for the CPU."""
    suite = BackendTest(PyqBackend, __name__)
    for pattern in GAPS:
        suite.xfail(pattern)
    for pattern in UNDECIDED:
        suite.exclude(pattern)
    cases = suite.test_cases
    for case in cases.values():
        for name in [name for name in vars(case) if name.endswith("_cuda")]:
            delattr(case, name)
    return cases


globals().update(suite_of_onnx())


@pytest.fixture(autouse=True, scope="module")
def models_in_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The suite writes its models to the home folder otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_MODELS", str(tmp_path_factory.mktemp("models")))
        yield


# The tests about operators and integer types that pyq has kernels for.
QUANTIZATION = re.compile("quantizelinear|qlinear|matmulinteger|convinteger")
NO_KERNEL = re.compile("e4m3fn|e5m2|float4|int16|int[24]$|blocked|float16")
OWN = [
    test for test in load_model_tests(kind="node") if QUANTIZATION.search(test.name) and not NO_KERNEL.search(test.name)
]


def test_quantization_tests_of_the_suite_are_found() -> None:
    assert len(OWN) == 18


@pytest.mark.parametrize("name", ["c", "numba", "reference"])
@pytest.mark.parametrize("test", OWN, ids=lambda test: test.name)
def test_8_bit_operators_run_on_kernels(test: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `onnx.reference` to fall back to, on every backend, bit for bit."""

    def unexpected(*args: Any) -> None:
        raise AssertionError("the node was given to onnx.reference")

    monkeypatch.setattr("pyq.onnx.integer_steps.FloatStep", unexpected)
    with pyq.use_backend(name):
        model = backend.prepare(test.model)
        for inputs, expected in test.data_sets:
            outputs = model.run([numpy_helper.to_array(x) if hasattr(x, "dims") else x for x in inputs])
            for output, array in zip(outputs, expected, strict=True):
                assert output.dtype == array.dtype
                np.testing.assert_array_equal(output, array)


def relu_model() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N] x, float[N] b) => (float[N] y) '
        "{ s = Add(x, b) y = Relu(s) }"
    )


def test_prepare_and_run_by_order_and_by_name() -> None:
    assert issubclass(PyqBackend, Backend)
    x, b = np.float32([1, -3]), np.float32([1, 1])
    prepared = backend.prepare(relu_model(), "CPU")
    for inputs in ([x, b], (x, b), {"b": b, "x": x}):
        (y,) = prepared.run(inputs)
        np.testing.assert_array_equal(y, [2, 0])
    (y,) = backend.run_model(relu_model(), [x, b])
    np.testing.assert_array_equal(y, [2, 0])


def test_session_options_reach_the_session() -> None:
    with pytest.raises(ValueError, match="name: got 'gpu'"):
        backend.prepare(relu_model(), backend="gpu")


def test_wrong_number_of_inputs() -> None:
    with pytest.raises(ValueError, match=r"inputs: got 1, the model has 2: \['x', 'b'\]"):
        backend.prepare(relu_model()).run([np.float32([1])])


def test_run_node() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])
    x, scale, zero_point = np.float32([-1, 0, 1.25]), np.float32(0.5), np.int8(-3)
    (y,) = backend.run_node(node, [x, scale, zero_point])
    assert y.dtype == np.int8
    np.testing.assert_array_equal(y, [-5, -3, -1])  # 2.5 is rounded to even
    (y,) = backend.run_node(node, {"x": x, "scale": scale, "zero_point": zero_point}, opset_version=13)
    np.testing.assert_array_equal(y, [-5, -3, -1])


@pytest.mark.parametrize(("device", "supported"), [("CPU", True), ("CPU:0", True), ("CUDA", False)])
def test_devices(device: str, supported: bool) -> None:
    assert backend.supports_device(device) == supported
    if not supported:
        with pytest.raises(ValueError, match=f"device: got '{device}'"):
            backend.prepare(relu_model(), device)
