"""Arithmetic, concatenation, tables and softmax: bit for bit the unfused float chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_node import run_node

from pyq.elementwise import add, concat, div, mul, sub
from pyq.qparams import QParams
from pyq.softmax import softmax
from pyq.tables import FUNCTIONS, requantize, unary, unary_table
from pyq.tensor import QTensor

BYTES = ["uint8", "int8"]
ALL = np.arange(256, dtype=np.uint8)


pytestmark = pytest.mark.usefixtures("backend")


def quantized_by_onnx(real: np.ndarray, out: QParams) -> np.ndarray:
    return run_node("QuantizeLinear", real, out.scale, out.zero_point.astype(out.dtype))


# --- add, sub, mul, div -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "name"), [(add, "Add"), (sub, "Sub"), (mul, "Mul"), (div, "Div")])
@pytest.mark.parametrize("ta", BYTES)
@pytest.mark.parametrize("tb", BYTES)
@pytest.mark.parametrize("out", [QParams(0.03, 128), QParams(0.9, -7, "int8")])
def test_every_pair_of_bytes(op: Any, name: str, ta: str, tb: str, out: QParams) -> None:
    a = QTensor(ALL.view(ta)[:, None], 0.037, 11)
    b = QTensor(np.delete(ALL.view(tb), 7), 0.011, 7)  # without its zero, so that division is defined
    y = op(a, b, out)
    np.testing.assert_array_equal(y.data, quantized_by_onnx(run_node(name, a.dequantize(), b.dequantize()), out))
    assert (y.scale, y.zero_point, y.dtype) == (out.scale, out.zero_point, out.dtype)


@settings(max_examples=40)
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=5, max_side=4), st.booleans())
def test_broadcasting(shapes: hnp.BroadcastableShapes, transposed: bool) -> None:
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes.input_shapes)
    a, b = QTensor(first, 0.1, 3), QTensor(second, 0.2, 100)
    if transposed:
        a, b = QTensor(first.copy(order="F"), 0.1, 3), QTensor(second, 0.2, 100)
    expected = quantized_by_onnx(np.asarray(a.dequantize() + b.dequantize()), QParams(0.25, 60))
    y = add(a, b, QParams(0.25, 60))
    assert y.shape == shapes.result_shape
    np.testing.assert_array_equal(y.data, expected)


def test_sum_keeps_channels_last() -> None:
    x = QTensor(np.zeros((2, 4, 5, 3), np.uint8).transpose(0, 3, 1, 2), 0.1)
    for y in (add(x, x, QParams(0.1)), mul(x, QTensor(np.ones((1, 3, 1, 1), np.uint8), 0.1), QParams(0.1))):
        assert y.data.strides == x.data.strides


def test_division_by_zero_saturates() -> None:
    a = QTensor(np.array([1, 9], np.uint8), 1.0, 5)
    assert div(a, QTensor(np.array([3, 3], np.uint8), 1.0, 3), QParams(1.0, 9)).data.tolist() == [0, 255]


# --- concat and requantize ----------------------------------------------------------------------------------


def test_concat_requantizes_each_part() -> None:
    rng = np.random.default_rng(2)
    parts = [
        QTensor(rng.integers(0, 256, (2, n, 3)).astype(np.uint8).view(t), s, z)
        for n, t, s, z in ((4, "uint8", 0.1, 3), (1, "int8", 0.3, -9), (2, "uint8", 0.05, 77))
    ]
    out = QParams(0.2, 60)
    expected = quantized_by_onnx(np.concatenate([part.dequantize() for part in parts], 1), out)
    for axis in (1, -2):
        np.testing.assert_array_equal(concat(parts, axis, out).data, expected)


def test_concat_chooses_parameters_that_cover_all() -> None:
    same = QTensor(ALL, 0.1, 3)
    assert concat([same, same[:3]], 0) == QTensor(np.concatenate([ALL, ALL[:3]]), 0.1, 3)
    wide = concat([same, QTensor(ALL.view(np.int8), 0.5, 1)], 0)
    assert (
        np.abs(wide.dequantize() - np.concatenate([same.dequantize(), np.r_[-0.5:63.5:0.5, -64.5:-0.5:0.5]])).max()
        < 0.27
    )
    channels_last = QTensor(np.zeros((2, 4, 5, 3), np.uint8).transpose(0, 3, 1, 2), 0.1)
    assert concat([channels_last] * 2, 1).data.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("ty", BYTES)
def test_requantize_every_byte(tx: str, ty: str) -> None:
    x, out = QTensor(ALL.view(tx), 0.3, 20), QParams(0.11, 44, ty)
    np.testing.assert_array_equal(requantize(x, out).data, quantized_by_onnx(x.dequantize(), out))


# --- unary --------------------------------------------------------------------------------------------------

ONNX_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "leaky_relu": ("LeakyRelu", {"alpha": 0.125}),
    "elu": ("Elu", {"alpha": 0.75}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "hardsigmoid": ("HardSigmoid", {"alpha": 0.25, "beta": 0.625}),
    "hardswish": ("HardSwish", {}),
    "gelu": ("Gelu", {"approximate": "tanh"}),
    "erf": ("Erf", {}),
    "softplus": ("Softplus", {}),
    "mish": ("Mish", {}),
    "exp": ("Exp", {}),
    "abs": ("Abs", {}),
    "neg": ("Neg", {}),
    "identity": ("Identity", {}),
    "sqrt": ("Sqrt", {}),
    "log": ("Log", {}),
}


@pytest.mark.parametrize("fn", ONNX_NAMES)
@pytest.mark.parametrize("dtype", BYTES)
def test_named_functions_are_those_of_onnx(fn: str, dtype: str) -> None:
    operator, parameters = ONNX_NAMES[fn]
    lowest = 0 if fn in ("sqrt", "log") else 100
    x = QTensor(ALL.view(dtype), 0.03, np.iinfo(dtype).min + lowest)
    out = QParams(1 / 64, 30, dtype)
    real = run_node(operator, x.dequantize().astype(np.float64), **parameters).astype(np.float32)
    np.testing.assert_array_equal(unary(x, fn, out, **parameters).data, quantized_by_onnx(real, out))


def test_functions_that_onnx_lacks() -> None:
    x, out = QTensor(ALL, 0.1, 100), QParams(1 / 32, 10)
    real = x.dequantize().astype(np.float64)
    expected = {"relu6": np.clip(real, 0, 6), "silu": real / (1 + np.exp(-real))}
    assert set(FUNCTIONS) == set(ONNX_NAMES) | set(expected)
    for fn, values in expected.items():
        np.testing.assert_array_equal(unary(x, fn, out).data, quantized_by_onnx(values.astype(np.float32), out))


def test_extreme_inputs_are_finite() -> None:
    x = QTensor(ALL, 1e4, 128)
    assert (
        unary(x, "sigmoid").dequantize().tolist() == [0.0] * 128 + [unary(x, "sigmoid").dequantize()[128]] + [1.0] * 127
    )
    for fn in ("tanh", "silu", "gelu", "softplus", "mish", "elu", "hardswish"):
        assert np.isfinite(unary(x, fn).dequantize()).all()


def test_output_covers_the_values_of_the_function_unless_given() -> None:
    x = QTensor(ALL, 0.05, 128)
    y = unary(x, "tanh")
    assert y.dtype == np.uint8
    assert np.abs(y.dequantize() - np.tanh(x.dequantize())).max() <= y.scale * 0.501
    assert (y.data.min(), y.data.max()) == (0, 255)
    assert unary(QTensor(ALL.view(np.int8), 0.05), "tanh").dtype == np.int8


def test_any_callable_and_a_table_used_twice() -> None:
    x = QTensor(ALL.reshape(16, 16), 0.25, 7)
    out = QParams(0.5, 3)
    table = unary_table(lambda real: real * 2, x.params, out)
    np.testing.assert_array_equal(table(x).data, quantized_by_onnx(x.dequantize() * 2, out))
    np.testing.assert_array_equal(table(x[3]).data, table(x).data[3])
    assert table.values.shape == (256,)
    with pytest.raises(ValueError, match="x: the table is for"):
        table(QTensor(ALL, 0.5, 7))


# --- softmax ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("scale", [1e-4, 0.05, 0.3, 100.0])
def test_softmax_approximates_onnx(dtype: str, axis: int, scale: float) -> None:
    x = QTensor(np.random.default_rng(3).integers(0, 256, (4, 5, 60)).astype(np.uint8).view(dtype), scale, 7)
    y = softmax(x, axis)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    real = (x.data.astype(np.float64) - 7) * x.scale.astype(np.float64)
    half = 0.5 / 2**23  # of each exponential, and of the result's rounding
    np.testing.assert_allclose(y, run_node("Softmax", real, axis=axis), rtol=0, atol=(x.shape[axis] + 3) * half)
    out = QParams(1 / 256)
    quantized = softmax(x, axis, out)
    assert isinstance(quantized, QTensor)
    np.testing.assert_array_equal(quantized.data, quantized_by_onnx(y, out))


def test_softmax_equals_exact_integers() -> None:
    q, scale = [3, 250, 0, 249, 250], np.float32(0.02)
    terms = [round(float(np.exp(-(250 - v) * float(scale))) * 2**23) for v in q]
    expected = [float(np.float32(t) / np.float32(sum(terms))) for t in terms]
    assert np.asarray(softmax(QTensor(np.array(q, np.uint8), scale))).tolist() == expected


# --- errors -------------------------------------------------------------------------------------------------

X = QTensor(np.ones((2, 3), np.uint8), 0.5)
P = QParams(0.5)
PER_AXIS = QTensor(np.ones((2, 3), np.uint8), [0.5, 1.0], axis=0)
ZERO = QTensor(np.zeros((2, 1), np.uint8), 1.0)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add(X.data, X, P), TypeError, "a: expected a QTensor"),
        (lambda: add(X, 3, P), TypeError, "b: expected a QTensor, got int"),
        (lambda: add(X, PER_AXIS, P), ValueError, "b: expected one scale"),
        (lambda: add(X, X, None), TypeError, "out: expected QParams, got NoneType"),
        (lambda: sub(X, X, QParams(1.0, 0, "int32")), ValueError, "out: expected dtype"),
        (lambda: mul(X, X.T, P), ValueError, r"a, b: expected shapes that broadcast, got \(2, 3\) and \(3, 2\)"),
        (lambda: div(ZERO, ZERO, P), ValueError, "0 / 0"),
        (lambda: div(X, X.data, P), TypeError, "b: expected a QTensor"),
        (lambda: concat([], 0), TypeError, "tensors: expected a sequence of at least one QTensor"),
        (lambda: concat(X, 0), TypeError, "tensors: expected a sequence"),
        (lambda: concat([X, X.data], 0), TypeError, r"tensors\[1\]: expected a QTensor"),
        (lambda: concat([X, X.T], 0), ValueError, "tensors: expected shapes that agree except along axis 0"),
        (lambda: concat([X, X], 2), ValueError, "axis: expected -2 to 1"),
        (lambda: requantize(X, None), TypeError, "out: expected QParams"),
        (lambda: unary(X.data, "relu"), TypeError, "x: expected a QTensor"),
        (lambda: unary(PER_AXIS, "relu"), ValueError, "x: expected one scale"),
        (lambda: unary(X, "relax"), ValueError, "fn: expected one of 'identity', 'relu'"),
        (lambda: unary(X, 3), TypeError, "fn: expected a name or a function"),
        (lambda: unary(QTensor(X.data, 1.0, 9), "log"), ValueError, "fn: 'log' is not a number at -9.0"),
        (lambda: unary(X, "log"), ValueError, "finite"),
        (lambda: unary(X, np.sum), ValueError, "fn: expected an element-wise function"),
        (lambda: unary_table("relu", QParams([1.0], axis=0)), ValueError, "input: expected one scale"),
        (lambda: unary_table("relu", QParams(1.0, dtype="int32")), ValueError, "input: expected dtype uint8 or int8"),
        (lambda: unary(X, "gelu", approximate="fast"), ValueError, "approximate: expected one of"),
        (lambda: softmax(X.data), TypeError, "x: expected a QTensor"),
        (lambda: softmax(X, 2), ValueError, "axis: expected -2 to 1"),
        (lambda: softmax(X[:, :0]), ValueError, "x: expected at least one element along axis 1"),
        (lambda: softmax(X, out=1.0), TypeError, "out: expected QParams"),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
