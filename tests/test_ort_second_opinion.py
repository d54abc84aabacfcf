"""ONNX Runtime as a second opinion, bit for bit, in the two ways in which it is exact.

Its QLinear kernels saturate on CPUs without VNNI unless `session.x64quantprecision` is set, and exist for few
type mixes. Every other mix is a QDQ model run without optimization, so in float32: with scales that are powers of
two and sums below 2**24 this has no rounding before the last one, and has to be equal, too.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from pyq.onnx import Session

TYPES = ("uint8", "int8")
RUNTIME_MIXES = [("uint8", "uint8", "uint8"), ("uint8", "int8", "uint8")]
ALL_MIXES = list(itertools.product(TYPES, TYPES, TYPES))
X_ZERO_POINT = {"uint8": 119, "int8": -9}
Y_ZERO_POINT = {"uint8": 125, "int8": -3}

CONVOLUTIONS = {
    "3x3": ((2, 8, 9, 11), (6, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "1x1": ((1, 33, 5, 7), (17, 33, 1, 1), {}),
    "3 channels, stride 2": ((1, 3, 16, 15), (16, 3, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "uneven strides and pads": ((1, 4, 12, 13), (5, 4, 3, 2), {"strides": [2, 1], "pads": [0, 1, 2, 3]}),
    "dilated": ((1, 6, 14, 13), (8, 6, 3, 3), {"dilations": [2, 3], "pads": [2, 3, 2, 3]}),
    "groups": ((2, 12, 8, 8), (9, 4, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ((1, 19, 10, 9), (19, 1, 3, 3), {"group": 19, "pads": [1, 1, 1, 1]}),
    "depthwise 5x5, stride 2": ((1, 16, 12, 12), (16, 1, 5, 5), {"group": 16, "strides": [2, 2]}),
    "depth multiplier": ((1, 6, 7, 7), (12, 1, 3, 3), {"group": 6}),
    "SAME_UPPER": ((1, 5, 11, 10), (4, 5, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "SAME_LOWER": ((1, 5, 11, 10), (4, 5, 2, 2), {"auto_pad": "SAME_LOWER"}),
    "1-D": ((2, 7, 31), (10, 7, 5), {"pads": [2, 1], "strides": [2]}),
    "3-D": ((1, 5, 6, 7, 8), (9, 5, 3, 2, 3), {"pads": [1, 0, 1, 1, 1, 1], "strides": [1, 2, 2]}),
    "3-D, groups, dilated": ((2, 6, 7, 8, 5), (4, 3, 2, 3, 2), {"group": 2, "dilations": [3, 2, 1]}),
    "3-D depthwise": ((1, 17, 5, 6, 7), (17, 1, 3, 3, 3), {"group": 17, "pads": [1, 1, 1, 1, 1, 1]}),
}

TRANSPOSED = {
    "2x2, stride 2": ((1, 12, 7, 9), (12, 10, 2, 2), {"strides": [2, 2]}),
    "4x4, stride 2": ((2, 8, 6, 5), (8, 6, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "output_padding": ((1, 5, 6, 7), (5, 7, 3, 3), {"strides": [2, 3], "output_padding": [1, 2], "pads": [1, 0, 1, 1]}),
    "SAME_UPPER": ((1, 6, 7, 5), (6, 4, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_UPPER"}),
    "output_shape": ((1, 6, 7, 5), (6, 4, 3, 3), {"strides": [2, 2], "output_shape": [14, 9]}),
    "groups, dilated": ((1, 12, 6, 8), (12, 5, 3, 2), {"group": 3, "strides": [2, 1], "dilations": [1, 2]}),
    "depthwise": ((1, 19, 8, 7), (19, 1, 4, 4), {"group": 19, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "1-D": ((2, 7, 31), (7, 10, 5), {"pads": [2, 1], "strides": [3]}),
    "3-D": ((1, 5, 4, 5, 3), (5, 6, 3, 2, 3), {"strides": [2, 2, 1], "pads": [1, 0, 1, 1, 0, 0]}),
}


def full_range(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


class Constants:
    """Initializers with generated names."""

    def __init__(self) -> None:
        self.tensors: list[onnx.TensorProto] = []

    def __call__(self, value: Any) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def model_of(nodes: list[onnx.NodeProto], constants: Constants, x: np.ndarray, y: str) -> onnx.ModelProto:
    rank = x.ndim
    inputs = [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(y))
    outputs = [helper.make_tensor_value_info("y", kind, [f"d{i}" for i in range(rank)])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, constants.tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def runtime(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x": x})[0]


def assert_same(model: onnx.ModelProto, x: np.ndarray, *, optimize: bool) -> None:
    """pyq equals ONNX Runtime, on data that is neither constant nor all clamped."""
    expected = runtime(model, x, optimize=optimize)
    [y] = Session(model).run(None, {"x": x})
    assert y.dtype == expected.dtype
    assert len(np.unique(expected)) > 20, "the test's scales leave too little to compare"
    np.testing.assert_array_equal(y, expected)


def output_scale(depth: int) -> np.float32:
    """A scale with which sums of `depth` full-range products, of scales 1 / 64 and about 1 / 128, fill 8 bits.

    An integer less its zero point has a standard deviation of 74 to 80, so the sum's is about
    `0.7 * sqrt(depth)`; 60 steps of the result are to be that much.
    """
    return np.float32(0.7 / 60 * np.sqrt(depth))


def power_of_two(scale: np.float32) -> float:
    """The next power of two."""
    return float(2 ** np.ceil(np.log2(scale)))


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize(("x_type", "w_type", "y_type"), RUNTIME_MIXES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_qlinear_conv(name: str, x_type: str, w_type: str, y_type: str, per_channel: bool) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[name]
    rng = np.random.default_rng(len(name))
    x, w = full_range(rng, x_shape, x_type), full_range(rng, w_shape, w_type)
    filters = w_shape[0] if per_channel else 1
    # ONNX Runtime wants equal zero points in all channels, and zero for int8.
    w_zero_point = np.full(filters, 0 if w_type == "int8" else 131, w_type)
    w_scale = rng.uniform(0.004, 0.012, filters).astype(np.float32)
    if not per_channel:
        w_scale, w_zero_point = w_scale.reshape(()), w_zero_point.reshape(())
    constant = Constants()
    inputs = ["x", constant(np.float32(1 / 64)), constant(np.array(X_ZERO_POINT[x_type], x_type))]
    inputs += [constant(w), constant(w_scale), constant(w_zero_point)]
    inputs += [constant(output_scale(int(np.prod(w_shape[1:])))), constant(np.array(Y_ZERO_POINT[y_type], y_type))]
    inputs += [constant(rng.integers(-30000, 30000, w_shape[0], np.int32))]
    node = helper.make_node("QLinearConv", inputs, ["y"], **attributes)
    assert_same(model_of([node], constant, x, y_type), x, optimize=True)


@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize(("x_type", "w_type", "y_type"), RUNTIME_MIXES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 40), (37, 64, 33), (50, 1000, 17)])
def test_qlinear_matmul(shape: tuple[int, int, int], x_type: str, w_type: str, y_type: str, per_column: bool) -> None:
    m, k, n = shape
    rng = np.random.default_rng(k)
    x, w = full_range(rng, (60, m, k), x_type), full_range(rng, (k, n), w_type)
    columns = n if per_column else 1
    scale = rng.uniform(0.004, 0.012, columns).astype(np.float32)
    zero_point = np.full(columns, 0 if w_type == "int8" else 131, w_type)
    if not per_column:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    constant = Constants()
    inputs = ["x", constant(np.float32(1 / 64)), constant(np.array(X_ZERO_POINT[x_type], x_type))]
    inputs += [constant(w), constant(scale), constant(zero_point)]
    inputs += [constant(output_scale(k)), constant(np.array(Y_ZERO_POINT[y_type], y_type))]
    node = helper.make_node("QLinearMatMul", inputs, ["y"])
    assert_same(model_of([node], constant, x, y_type), x, optimize=True)


class Dequantized:
    """Nodes of a QDQ model whose scales are powers of two."""

    def __init__(self, x_type: str) -> None:
        self.constant = Constants()
        pair = [self.constant(np.float32(1 / 64)), self.constant(np.array(X_ZERO_POINT[x_type], x_type))]
        self.nodes = [helper.make_node("DequantizeLinear", ["x", *pair], ["x_real"])]

    def weight(self, w: np.ndarray, axis: int, rng: np.random.Generator) -> str:
        channels = w.shape[axis]
        scale = self.constant(np.ldexp(np.float32(1), rng.integers(-9, -6, channels)))
        zero_point = self.constant(full_range(rng, (channels,), w.dtype.name))
        pair = [self.constant(w), scale, zero_point]
        self.nodes.append(helper.make_node("DequantizeLinear", pair, ["w_real"], axis=axis))
        return "w_real"

    def model(self, node: onnx.NodeProto, x: np.ndarray, y_type: str, scale: float) -> onnx.ModelProto:
        pair = [self.constant(np.float32(scale)), self.constant(np.array(Y_ZERO_POINT[y_type], y_type))]
        quantize = helper.make_node("QuantizeLinear", [node.output[0], *pair], ["y"])
        return model_of([*self.nodes, node, quantize], self.constant, x, y_type)


@pytest.mark.parametrize(("x_type", "w_type", "y_type"), ALL_MIXES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_qdq_conv(name: str, x_type: str, w_type: str, y_type: str) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[name]
    rng = np.random.default_rng(len(name))
    x, w = full_range(rng, x_shape, x_type), full_range(rng, w_shape, w_type)
    depth = int(np.prod(w_shape[1:]))
    assert depth * 255 * 255 < 2**24  # exact in float32
    parts = Dequantized(x_type)
    node = helper.make_node("Conv", ["x_real", parts.weight(w, 0, rng)], ["y_real"], **attributes)
    model = parts.model(node, x, y_type, power_of_two(output_scale(depth)))
    assert [step.op_type for step in Session(model).steps] == ["Conv"]
    assert_same(model, x, optimize=False)


@pytest.mark.parametrize(("x_type", "w_type", "y_type"), ALL_MIXES)
@pytest.mark.parametrize("name", TRANSPOSED)
def test_qdq_conv_transpose(name: str, x_type: str, w_type: str, y_type: str) -> None:
    x_shape, w_shape, attributes = TRANSPOSED[name]
    rng = np.random.default_rng(len(name))
    x, w = full_range(rng, x_shape, x_type), full_range(rng, w_shape, w_type)
    channels = w_shape[0] // attributes.get("group", 1)
    assert channels * int(np.prod(w_shape[2:])) * 255 * 255 < 2**24  # exact in float32
    parts = Dequantized(x_type)
    node = helper.make_node("ConvTranspose", ["x_real", parts.weight(w, 1, rng)], ["y_real"], **attributes)
    met = channels * int(np.prod([-(-k // s) for k, s in zip(w_shape[2:], attributes["strides"], strict=True)]))
    model = parts.model(node, x, y_type, power_of_two(output_scale(met)))
    assert [step.op_type for step in Session(model).steps] == ["ConvTranspose"]
    assert_same(model, x, optimize=False)


@pytest.mark.parametrize(("x_type", "w_type", "y_type"), ALL_MIXES)
@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 200, 40), (37, 64, 33), (50, 250, 17)])
def test_qdq_matmul(shape: tuple[int, int, int], x_type: str, w_type: str, y_type: str) -> None:
    m, k, n = shape
    rng = np.random.default_rng(k)
    x, w = full_range(rng, (9, m, k), x_type), full_range(rng, (k, n), w_type)
    assert k * 255 * 255 < 2**24  # exact in float32
    parts = Dequantized(x_type)
    node = helper.make_node("MatMul", ["x_real", parts.weight(w, 1, rng)], ["y_real"])
    model = parts.model(node, x, y_type, power_of_two(output_scale(k)))
    assert [step.op_type for step in Session(model).steps] == ["MatMul"]
    assert_same(model, x, optimize=False)
