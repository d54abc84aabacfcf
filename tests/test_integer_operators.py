"""ONNX operators with their quantization parameters as inputs, constant or not: exact, against integers or floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnx_node import run_node

import pyq
from pyq.onnx import Session
from pyq.onnx.contrib import CONTRIB
from pyq.qparams import QParams, dequantize_array, quantize_array

TYPES = ("uint8", "int8")


def full_range(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def node_model(
    op_type: str, inputs: list[Any], fed: set[int], outputs: list[Any], domain: str = "", **attributes: Any
) -> onnx.ModelProto:
    """A model of one node. Inputs number `fed` come at run time, None is absent, all others are constants.

    outputs: one array per output, for its type and rank.
    """
    names = ["" if value is None else f"x{i}" for i, value in enumerate(inputs)]
    arrays = [np.asarray(value) for value in inputs]
    given = [
        helper.make_tensor_value_info(names[i], helper.np_dtype_to_tensor_dtype(arrays[i].dtype), arrays[i].shape)
        for i in sorted(fed)
    ]
    constants = [numpy_helper.from_array(arrays[i], name) for i, name in enumerate(names) if name and i not in fed]
    made = [
        helper.make_tensor_value_info(
            f"y{i}", helper.np_dtype_to_tensor_dtype(y.dtype), [f"d{i}_{axis}" for axis in range(y.ndim)]
        )
        for i, y in enumerate(outputs)
    ]
    node = helper.make_node(op_type, names, [value.name for value in made], domain=domain, **attributes)
    graph = helper.make_graph([node], "g", given, made, constants)
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(
    op_type: str, inputs: list[Any], fed: set[int], outputs: list[Any], domain: str = "", **attributes: Any
) -> list[np.ndarray]:
    """The outputs of the node by a Session that may not use `onnx.reference`, run twice."""
    session = Session(node_model(op_type, inputs, fed, outputs, domain, **attributes))
    feeds = {f"x{i}": np.asarray(inputs[i]) for i in fed}
    first, second = session.run(None, feeds), session.run(None, feeds)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    return second


@pytest.fixture(autouse=True)
def without_onnx_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*args: Any) -> None:
        raise AssertionError("the node was given to onnx.reference")

    monkeypatch.setattr("pyq.onnx.integer_steps.FloatStep", unexpected)


FED = {"activation": {0}, "activation and its zero point": {0, 2}, "everything": {0, 1, 2, 3}}


@pytest.mark.parametrize("fed", FED.values(), ids=FED)
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("b_type", TYPES)
@pytest.mark.parametrize("a_type", TYPES)
def test_matmul_integer(a_type: str, b_type: str, per_column: bool, fed: set[int]) -> None:
    rng = np.random.default_rng(3)
    a, b = full_range(rng, (2, 5, 67), a_type), full_range(rng, (67, 19), b_type)
    za, zb = full_range(rng, (), a_type), full_range(rng, (19,) if per_column else (), b_type)
    wanted = (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb)
    [acc] = run("MatMulInteger", [a, b, za, zb], fed, [wanted.astype(np.int32)])
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, wanted)


def test_matmul_integer_of_batches_and_without_zero_points() -> None:
    rng = np.random.default_rng(4)
    a, b = full_range(rng, (3, 1, 4, 9), "int8"), full_range(rng, (2, 9, 5), "int8")
    wanted = a.astype(np.int32) @ b.astype(np.int32)
    [acc] = run("MatMulInteger", [a, b], {0}, [wanted])
    np.testing.assert_array_equal(acc, wanted)


@pytest.mark.parametrize("fed", FED.values(), ids=FED)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("w_type", TYPES)
@pytest.mark.parametrize("x_type", TYPES)
def test_conv_integer(x_type: str, w_type: str, group: int, rank: int, fed: set[int]) -> None:
    rng = np.random.default_rng(5)
    size, kernel = [9, 8, 5][:rank], [3, 2, 2][:rank]
    x, w = full_range(rng, (2, 6, *size), x_type), full_range(rng, (9, 6 // group, *kernel), w_type)
    zx, zw = full_range(rng, (), x_type), full_range(rng, (), w_type)
    pads = [1, 0, 0][:rank] + [1, 1, 0][:rank]
    attributes = {"group": group, "strides": [2, 1, 1][:rank], "pads": pads, "kernel_shape": kernel}
    differences = x.astype(np.float64) - zx, w.astype(np.float64) - zw
    wanted = run_node("Conv", *differences, **attributes)
    [acc] = run("ConvInteger", [x, w, zx, zw], fed, [wanted.astype(np.int32)], **attributes)
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, wanted)


@pytest.mark.parametrize("y_type", TYPES)
@pytest.mark.parametrize("w_type", TYPES)
@pytest.mark.parametrize("x_type", TYPES)
def test_qlinear_conv_with_parameters_at_run_time(x_type: str, w_type: str, y_type: str) -> None:
    """The same bits whether everything, or only the activation, comes at run time."""
    rng = np.random.default_rng(6)
    x, w = full_range(rng, (1, 4, 7, 6), x_type), full_range(rng, (5, 4, 3, 3), w_type)
    scales = rng.uniform(0.004, 0.012, 5).astype(np.float32)
    x_params = [np.float32(1 / 64), full_range(rng, (), x_type)]
    w_params = [scales, full_range(rng, (5,), w_type)]
    bias = rng.integers(-9999, 9999, 5, np.int32)
    inputs = [x, *x_params, w, *w_params, np.float32(0.1), np.array(7, y_type), bias]
    wanted = np.zeros((1, 5, 7, 6), y_type)
    [constant] = run("QLinearConv", inputs, {0}, [wanted], pads=[1, 1, 1, 1])
    [dynamic] = run("QLinearConv", inputs, set(range(9)), [wanted], pads=[1, 1, 1, 1])
    assert constant.dtype == y_type
    assert len(np.unique(constant)) > 40
    np.testing.assert_array_equal(constant, dynamic)


@pytest.mark.parametrize("b_shape", [(33, 12), (3, 33, 12)])
@pytest.mark.parametrize("b_type", TYPES)
@pytest.mark.parametrize("a_type", TYPES)
def test_qlinear_matmul_with_parameters_at_run_time(a_type: str, b_type: str, b_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    a, b = full_range(rng, (3, 8, 33), a_type), full_range(rng, b_shape, b_type)
    za, zb, zy = full_range(rng, (), a_type), full_range(rng, (), b_type), np.array(100, a_type)
    sa, sb, sy = np.float32(0.013), np.float32(0.0071), np.float32(0.61)
    inputs = [a, sa, za, b, sb, zb, sy, zy]
    acc = (a.astype(np.int64) - za) @ (b.astype(np.int64) - zb)
    limits = np.iinfo(a_type)
    wanted = np.clip(np.rint(acc.astype(np.float32) * (sa * sb / sy)) + zy, limits.min, limits.max)
    for fed in ({0}, {0, 3}, set(range(8))):
        [y] = run("QLinearMatMul", inputs, fed, [wanted.astype(a_type)])
        assert y.dtype == a_type
        assert len(np.unique(y)) > 20
        np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("fed", [{0, 3}, set(range(8))])
def test_qlinear_matmul_with_a_vector(fed: set[int]) -> None:
    rng = np.random.default_rng(9)
    a, b = full_range(rng, (8, 33), "uint8"), full_range(rng, (33,), "int8")
    scales, zero = (np.float32(0.01), np.float32(0.02), np.float32(0.7)), (np.uint8(99), np.int8(-3), np.uint8(77))
    inputs = [a, scales[0], zero[0], b, scales[1], zero[1], scales[2], zero[2]]
    acc = (a.astype(np.int64) - 99) @ (b.astype(np.int64) + 3)
    wanted = np.clip(np.rint(acc.astype(np.float32) * (scales[0] * scales[1] / scales[2])) + 77, 0, 255)
    [y] = run("QLinearMatMul", inputs, fed, [wanted.astype(np.uint8)])
    assert len(np.unique(y)) > 4
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("fed", [{0}, {0, 1, 2}])
@pytest.mark.parametrize("axis", [None, 0, 2, -1])
@pytest.mark.parametrize("dtype", TYPES)
def test_quantize_and_dequantize_linear(dtype: str, axis: int | None, fed: set[int]) -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(0, 3, (4, 3, 5)).astype(np.float32)
    channels = () if axis is None else x.shape[axis]
    scale, zero_point = rng.uniform(0.01, 0.1, channels).astype(np.float32), full_range(rng, channels, dtype)
    attributes = {} if axis is None else {"axis": axis}
    wanted = run_node("QuantizeLinear", x, scale, zero_point, **attributes)
    [q] = run("QuantizeLinear", [x, scale, zero_point], fed, [wanted], **attributes)
    assert q.dtype == dtype
    np.testing.assert_array_equal(q, wanted)
    wanted = run_node("DequantizeLinear", q, scale, zero_point, **attributes)
    [y] = run("DequantizeLinear", [q, scale, zero_point], fed, [wanted], **attributes)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_without_zero_point(dtype: str) -> None:
    q = full_range(np.random.default_rng(9), (100,), dtype)
    scale = np.float32(0.37)
    [y] = run("DequantizeLinear", [q, scale], {0}, [q.astype(np.float32)])
    np.testing.assert_array_equal(y, q.astype(np.float32) * scale)
    [q] = run("QuantizeLinear", [y[:5], scale], {0}, [q[:5].astype(np.uint8)])
    assert q.dtype == np.uint8


@pytest.mark.parametrize("x", [[0.0, 0.0], [1.5, 3.0, 200.0], [-4.0, -1.0], [-3.0, 5.0, 0.1], [1e-42, 0.0]])
def test_dynamic_quantize_linear(x: list[float]) -> None:
    array = np.float32(x)
    empty = [np.zeros(1, np.uint8), np.zeros((), np.float32), np.zeros((), np.uint8)]
    y, scale, zero_point = run("DynamicQuantizeLinear", [array], {0}, empty)
    assert (y.dtype, scale.dtype, zero_point.dtype) == (np.uint8, np.float32, np.uint8)
    assert scale.shape == zero_point.shape == ()
    wanted = pyq.quantize(array)
    np.testing.assert_array_equal(y, wanted.data)
    assert (scale, zero_point) == (wanted.scale, wanted.zero_point)


# The domain of ONNX Runtime.


def contrib(op_type: str, inputs: list[Any], fed: set[int], y: np.ndarray, **attributes: Any) -> np.ndarray:
    [output] = run(op_type, inputs, fed, [y], "com.microsoft", **attributes)
    assert output.dtype == y.dtype
    return output


def triple(q: np.ndarray, params: QParams) -> list[np.ndarray]:
    return [q, params.scale, params.zero_point.astype(params.dtype)]


A, B, OUT = QParams(0.021, 119, "uint8"), QParams(0.033, -7, "int8"), QParams(0.045, 101, "uint8")


@pytest.mark.parametrize(("op_type", "function"), [("QLinearAdd", np.add), ("QLinearMul", np.multiply)])
@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (6, 1, 1)])
def test_contrib_binary(op_type: str, function: np.ufunc, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(10)
    a, b = full_range(rng, (2, 6, 5, 4), "uint8"), full_range(rng, shape, "int8")
    wanted = quantize_array(function(dequantize_array(a, A), dequantize_array(b, B)), OUT)
    inputs = [*triple(a, A), *triple(b, B), *triple(a, OUT)[1:]]
    np.testing.assert_array_equal(contrib(op_type, inputs, {0, 3}, wanted), wanted)


@pytest.mark.parametrize("op_type", ["QLinearSigmoid", "QLinearLeakyRelu"])
def test_contrib_unary(op_type: str) -> None:
    q = np.arange(256, dtype=np.uint8)
    x, out = dequantize_array(q, A).astype(np.float64), QParams(1 / 128, 60, "uint8")
    attributes = {"alpha": 0.3} if op_type == "QLinearLeakyRelu" else {}
    reals = np.where(x < 0, 0.3 * x, x) if attributes else 1 / (1 + np.exp(-x))
    wanted = quantize_array(reals.astype(np.float32), out)
    y = contrib(op_type, [*triple(q, A), *triple(q, out)[1:]], {0}, wanted, **attributes)
    np.testing.assert_array_equal(y, wanted)


def test_contrib_pools() -> None:
    q = full_range(np.random.default_rng(11), (2, 5, 8, 6), "uint8")
    out = QParams(0.005, 128, "uint8")
    inputs = [*triple(q, A), *triple(q, out)[1:]]
    tensor = pyq.QTensor(q, A.scale, A.zero_point)
    wanted = pyq.global_average_pool(tensor, out).data
    y = contrib("QLinearGlobalAveragePool", inputs, {0}, wanted)
    np.testing.assert_array_equal(y, wanted)
    window = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}
    wanted = pyq.average_pool(tensor, **window, out=out).data
    np.testing.assert_array_equal(contrib("QLinearAveragePool", inputs, {0}, wanted, **window), wanted)


def test_contrib_concat() -> None:
    rng = np.random.default_rng(12)
    a, b = full_range(rng, (2, 3, 4), "uint8"), full_range(rng, (2, 5, 4), "uint8")
    wanted = np.concatenate([a, quantize_array(dequantize_array(b, OUT), A)], axis=1)
    y = contrib("QLinearConcat", [*triple(a, A)[1:], *triple(a, A), *triple(b, OUT)], {2, 5}, wanted, axis=1)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("b_type", TYPES)
def test_contrib_gemm_equals_onnx_runtime(b_type: str, transposed: int, quantized: bool) -> None:
    rng = np.random.default_rng(13)
    a, b = full_range(rng, (9, 40), "uint8"), full_range(rng, (40, 13), b_type)
    scales = rng.uniform(0.004, 0.012, 13).astype(np.float32)
    inputs = [*triple(a, A), b.T if transposed else b, scales, np.full(13, 3, b_type)]
    inputs += [rng.integers(-5000, 5000, 13, np.int32)]
    inputs += triple(a, OUT)[1:] if quantized else []
    y = np.zeros((9, 13), np.uint8 if quantized else np.float32)
    model = node_model("QGemm", inputs, {0}, [y], "com.microsoft", transB=transposed)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    [wanted] = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"x0": a})
    assert len(np.unique(wanted)) > 30
    np.testing.assert_array_equal(contrib("QGemm", inputs, {0}, y, transB=transposed), wanted)


@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize("given", [{"zero_point", "bias"}, {"zero_point"}, {"bias"}, set()])
def test_contrib_dynamic_matmul(per_column: bool, given: set[str]) -> None:
    """x, the weights, their scale and zero point, a bias: of which the last two may be missing."""
    rng = np.random.default_rng(14)
    x, b = rng.normal(size=(2, 5, 70)).astype(np.float32), full_range(rng, (70, 13), "int8")
    count = (13,) if per_column else ()
    scale = rng.uniform(0.001, 0.1, count).astype(np.float32)
    zero_point = full_range(rng, count, "int8") if "zero_point" in given else np.zeros(count, np.int8)
    bias = rng.normal(size=13).astype(np.float32) if "bias" in given else None
    weight = pyq.QTensor(b, scale, zero_point, 1 if per_column else None)
    wanted = pyq.matmul(pyq.quantize(x), weight, bias)
    inputs = [x, b, scale, zero_point if "zero_point" in given else None, *([] if bias is None else [bias])]
    np.testing.assert_array_equal(contrib("DynamicQuantizeMatMul", inputs, {0}, wanted), wanted)


def test_every_contrib_operator_is_tested() -> None:
    with open(__file__) as file:
        text = file.read()
    assert [name for name in CONTRIB if f'"{name}"' not in text] == []


def test_contrib_operator_with_parameters_at_run_time_is_not_supported() -> None:
    q = np.zeros((2, 3), np.uint8)
    inputs = [*triple(q, A), *triple(q, B)[1:]]
    model = node_model("QLinearSigmoid", inputs, {0, 1}, [q], "com.microsoft")
    with pytest.raises(pyq.UnsupportedOperator, match=r"operator com\.microsoft\.QLinearSigmoid of opset 1"):
        Session(model)
