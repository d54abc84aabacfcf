"""Matrix products on every backend: exact integers, ONNX as second opinion, and what bad arguments give."""

from __future__ import annotations

from typing import Any, Literal

import exact
import numpy as np
import pytest
from exact import full_range
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_node import run_node

from pyq.ops import linear, matmul, matmul_dynamic, matmul_integer
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.tensor import QTensor, quantize

BYTES = ["uint8", "int8"]


pytestmark = pytest.mark.usefixtures("backend")


# --- matmul_integer -----------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    st.integers(1, 70),
    st.integers(1, 130),
    st.integers(1, 70),
    st.sampled_from(BYTES),
    st.sampled_from(BYTES),
)
def test_all_type_mixes_and_zero_points(m: int, k: int, n: int, ta: str, tb: str) -> None:
    rng = np.random.default_rng(m * k * n)
    a, b = full_range(rng, (m, k), ta), full_range(rng, (k, n), tb)
    for za in (full_range(rng, (), ta), full_range(rng, (m,), ta), full_range(rng, (m, 1), ta)):
        for zb in (full_range(rng, (), tb), full_range(rng, (n,), tb), full_range(rng, (1, n), tb)):
            acc = matmul_integer(a, b, za, zb)
            column = za.reshape(-1, 1).astype(np.int64)
            assert acc.dtype == np.int32
            np.testing.assert_array_equal(acc, exact.matmul(a, b, column, zb.astype(np.int64)))


@pytest.mark.parametrize("ta", BYTES)
@pytest.mark.parametrize("tb", BYTES)
def test_corners(ta: str, tb: str) -> None:
    ends = [np.iinfo(t) for t in (ta, tb)]
    for x in (ends[0].min, ends[0].max):
        for y in (ends[1].min, ends[1].max):
            a, b = np.full((5, 300), x, ta), np.full((300, 33), y, tb)
            for za in (ends[0].min, ends[0].max):
                for zb in (ends[1].min, ends[1].max):
                    np.testing.assert_array_equal(matmul_integer(a, b, za, zb), exact.matmul(a, b, za, zb))


def test_wraps_modulo_two_to_the_32() -> None:
    k = 70_000
    a, b = np.full((2, k), 255, np.uint8), np.full((k, 3), 255, np.uint8)
    assert k * 255 * 255 > 2**32
    np.testing.assert_array_equal(matmul_integer(a, b), exact.matmul(a, b))
    np.testing.assert_array_equal(matmul_integer(a, b, [0, 1]), exact.matmul(a, b, np.array([[0], [1]])))


@pytest.mark.parametrize(
    ("a_shape", "b_shape"),
    [
        ((3, 4, 5), (5, 6)),
        ((3, 4, 5), (3, 5, 6)),
        ((4, 5), (3, 5, 6)),
        ((2, 1, 4, 5), (3, 5, 6)),
        ((1, 4, 5), (2, 3, 5, 6)),
        ((5,), (5, 6)),
        ((5,), (3, 5, 6)),
        ((0, 5), (5, 6)),
    ],
)
def test_shapes_follow_numpy_matmul(a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(6)
    a, b = full_range(rng, a_shape, "uint8"), full_range(rng, b_shape, "int8")
    np.testing.assert_array_equal(matmul_integer(a, b, 7, -3), exact.matmul(a, b, 7, -3))


def test_zero_points_of_batches_equal_onnx() -> None:
    rng = np.random.default_rng(7)
    a, b = full_range(rng, (2, 3, 4, 5), "uint8"), full_range(rng, (2, 3, 5, 6), "int8")
    za, zb = full_range(rng, (2, 3, 4, 1), "uint8"), full_range(rng, (2, 3, 1, 6), "int8")
    np.testing.assert_array_equal(matmul_integer(a, b, za, zb), run_node("MatMulInteger", a, b, za, zb))


def test_packed_operand_has_its_own_zero_point() -> None:
    rng = np.random.default_rng(8)
    a, b, zb = full_range(rng, (7, 19), "int8"), full_range(rng, (19, 21), "uint8"), full_range(rng, (21,), "uint8")
    packed = pack(QTensor(b, np.ones(21), zb, axis=1))
    np.testing.assert_array_equal(matmul_integer(a, packed, -9), exact.matmul(a, b, -9, zb.astype(np.int64)))
    rows = np.arange(7, dtype=np.int8)
    expected = exact.matmul(a, b, rows[:, None].astype(np.int64), zb.astype(np.int64))
    np.testing.assert_array_equal(matmul_integer(a, packed, rows), expected)


@pytest.mark.parametrize("order", ["C", "F"])
def test_strided_operands(order: Literal["C", "F"]) -> None:
    rng = np.random.default_rng(9)
    a, b = full_range(rng, (18, 40), "uint8"), full_range(rng, (20, 50), "int8")
    a, b = a.copy(order)[::3, ::-2], b.copy(order)[:, 1::3]
    np.testing.assert_array_equal(matmul_integer(a, b, 3, 4), exact.matmul(a, b, 3, 4))


# --- matmul and linear --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("tw", BYTES)
@pytest.mark.parametrize("tout", BYTES)
def test_quantized_result_equals_qlinear_matmul(tx: str, tw: str, tout: str) -> None:
    # With scales that are powers of two, onnx.reference's float64 product and sum are exact and so comparable.
    rng = np.random.default_rng(10)
    x, w = full_range(rng, (4, 33, 30), tx), full_range(rng, (30, 21), tw)
    zx, zw, zy = full_range(rng, (), tx), full_range(rng, (), tw), np.array(10, tout)
    sx, sw, sy = np.float32(2**-7), np.float32(2**-5), np.float32(0.5)
    y = matmul(QTensor(x, sx, zx), QTensor(w, sw, zw), out=QParams(sy, zy, tout))
    assert isinstance(y, QTensor)
    expected = run_node("QLinearMatMul", x, sx, zx, w, sw, zw, sy, zy)
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(y.data, expected)
    assert (y.scale, y.zero_point, y.dtype) == (sy, zy, tout)


def operands(seed: int, per_axis: bool = True) -> tuple[QTensor, QTensor, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = quantize(rng.normal(size=(9, 37)).astype(np.float32))
    w = quantize(rng.normal(size=(37, 18)).astype(np.float32), "int8", axis=1 if per_axis else None)
    return x, w, rng.normal(size=18).astype(np.float32)


@pytest.mark.parametrize("per_axis", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "relu6", (-1.5, 2.25), (None, 0.5)])
def test_float_result_is_the_scaled_accumulator(per_axis: bool, activation: Any) -> None:
    x, w, bias = operands(11, per_axis)
    y = matmul(x, w, bias, activation=activation)
    expected = exact.matmul(x.data, w.data, int(x.zero_point)).astype(np.float32) * (x.scale * w.scale) + bias
    bounds = {"relu": (0, None), "relu6": (0, 6)}.get(activation, activation) if activation else (None, None)
    if bounds != (None, None):
        expected = np.clip(expected, *bounds)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(matmul(x, w), x.dequantize() @ w.dequantize(), atol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", (-1.5, 2.25)])
@pytest.mark.parametrize("out", [QParams(0.05, 100), QParams(0.02, -3, "int8"), QParams(0.04, 9, qmin=5, qmax=99)])
def test_quantized_result_is_the_normative_one(activation: Any, out: QParams) -> None:
    x, w, bias = operands(12)
    y = matmul(x, w, bias, out, activation)
    assert isinstance(y, QTensor)
    scale = x.scale * w.scale
    acc = exact.matmul(x.data, w.data, int(x.zero_point)) + np.rint(bias / scale).astype(np.int32)
    rounded = np.rint(acc.astype(np.float32) * (scale / out.scale)) + out.zero_point
    bounds = {"relu": (0, np.inf), "relu6": (0, 6), None: (-np.inf, np.inf)}.get(activation, activation)
    low, high = (np.clip(np.rint(np.float32(b) / out.scale) + out.zero_point, out.qmin, out.qmax) for b in bounds)
    np.testing.assert_array_equal(y.data, np.clip(rounded, low, high))


def test_linear_is_matmul_of_the_transposed_weight() -> None:
    x, w, bias = operands(13)
    expected = matmul(x, w, bias)
    np.testing.assert_array_equal(linear(x, w.T, bias), expected)
    np.testing.assert_array_equal(linear(x, pack(w), bias), expected)
    np.testing.assert_array_equal(linear(x[3], w.T, bias), np.asarray(expected)[3])


def test_batches_of_matrices_as_in_attention() -> None:
    rng = np.random.default_rng(14)
    q, k = (quantize(rng.normal(size=shape)) for shape in ((2, 3, 7, 8), (3, 8, 9)))
    expected = exact.matmul(q.data, k.data, int(q.zero_point), int(k.zero_point)).astype(np.float32) * (
        q.scale * k.scale
    )
    np.testing.assert_array_equal(matmul(q, k), expected)


def test_reduced_range_activations_and_the_promise_of_amax() -> None:
    rng = np.random.default_rng(15)
    x = quantize(rng.normal(size=(5, 64)), reduce_range=True)
    w = QTensor(full_range(rng, (64, 20), "int8"), 0.01)
    np.testing.assert_array_equal(matmul(x, pack(w, amax=127)), matmul(x, w))
    beyond = QTensor(np.full((5, 64), 128, np.uint8), 1.0)
    with pytest.raises(ValueError, match="amax=127"):
        matmul(beyond, pack(w, amax=127))


# --- matmul_dynamic -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("amax", [255, 127])
@pytest.mark.parametrize("shape", [(1, 70), (9, 70), (3, 0, 70), (70,), (2, 3, 70), (5, 64), (300, 250)])
@pytest.mark.parametrize("activation", [None, "relu", (-0.5, None)])
def test_dynamic_product_is_quantize_and_matmul(shape: tuple[int, ...], amax: int, activation: Any) -> None:
    rng = np.random.default_rng(16)
    x = rng.normal(0.3, 1, shape).astype(np.float32)
    weights = quantize(rng.laplace(size=(shape[-1], 37)).astype(np.float32), "int8", axis=1)
    w, bias = pack(weights, amax=amax), rng.normal(size=37).astype(np.float32)
    q = quantize(x, qmax=amax)
    assert x.size == 0 or q.data.max() == amax
    y = matmul_dynamic(x, w, bias, activation)
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, matmul(q, weights, bias, activation=activation))
    np.testing.assert_array_equal(matmul_dynamic(x.astype(np.float64), w), matmul(q, weights))


@settings(max_examples=60)
@given(st.integers(-44, 38), st.integers(-36, 38), st.integers(0, 2**32 - 1))
def test_dynamic_products_of_any_magnitude(power: int, w_power: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(over="ignore"):
        x = (rng.normal(size=(2, 9)) * 10.0**power).astype(np.float32)
        w = QTensor(full_range(rng, (9, 5), "uint8"), 10.0**w_power, 100)

    def outcome(product: Any) -> Any:
        try:
            return product()
        except ValueError as error:
            return str(error)

    y, expected = outcome(lambda: matmul_dynamic(x, pack(w))), outcome(lambda: matmul(quantize(x), w))
    np.testing.assert_array_equal(y, expected)


def test_columns_of_float_activations_and_bias_need_not_be_contiguous() -> None:
    rng = np.random.default_rng(17)
    x, bias = rng.normal(size=(64, 6)).astype(np.float32), rng.normal(size=(20, 2)).astype(np.float32)
    w = QTensor(full_range(rng, (64, 20), "int8"), 0.01)
    expected = matmul(quantize(x.T), w, bias[:, 1])
    np.testing.assert_array_equal(matmul_dynamic(x.T, pack(w), bias[:, 1]), expected)


# --- errors -------------------------------------------------------------------------------------------------

X = QTensor(np.ones((2, 3), np.uint8), 0.5)
W = QTensor(np.ones((3, 4), np.int8), 0.5)
PER_ROW = QTensor(np.ones((2, 3), np.uint8), [0.5, 0.25], axis=0)
FILTERS = pack(QTensor(np.ones((2, 3, 3), np.int8), 0.5))
REALS = np.array([[-1, 2, 0.5], [0.25, 2, 1]], np.float32)
TINY, HUGE = QTensor(X.data, 1e-30), QTensor(W.data, 1e38)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: matmul(X.data, W), TypeError, "x: expected a QTensor, got ndarray"),
        (lambda: matmul(X, W.data), TypeError, "w: expected a QTensor or a PackedWeight, got ndarray"),
        (lambda: matmul(QTensor(np.ones((2, 3), np.int32), 1.0), W), TypeError, "x: expected uint8 or int8"),
        (lambda: matmul(PER_ROW, W), ValueError, "x: expected one scale"),
        (lambda: matmul(X, W.T), ValueError, r"same K.*\(2, 3\).*\(4, 3\)"),
        (lambda: matmul(X, QTensor(W.data, [1.0] * 3, axis=0)), ValueError, "axis 0"),
        (lambda: matmul(X, W[0]), ValueError, r"w: expected \[K, N\]"),
        (lambda: matmul(X, FILTERS), ValueError, "w: expected weights packed for a matrix product"),
        (lambda: matmul_integer(X.data, FILTERS), ValueError, "w: expected weights packed for a matrix product"),
        (lambda: matmul(X, QTensor(np.ones((3, 4), np.int32), 1.0)), TypeError, "w: expected .*uint8 or int8"),
        (lambda: matmul(X, W, bias=[1.0, 2.0]), ValueError, "bias: expected 4 finite numbers"),
        (lambda: matmul(X, W, bias=[1.0, 2.0, 3.0, np.nan]), ValueError, "bias: expected 4 finite numbers"),
        (lambda: matmul(X, W, bias=["a"] * 4), TypeError, "bias: expected real numbers"),
        (lambda: matmul(X, W, out=0.5), TypeError, "out: expected QParams, got float"),
        (lambda: matmul(X, W, out=QParams(1.0, 0, "int32")), ValueError, "out: expected dtype uint8 or int8"),
        (lambda: matmul(X, W, out=QParams([1.0] * 4, axis=0)), ValueError, "out: expected one scale"),
        (lambda: matmul(X, W, activation="swish"), ValueError, "activation: expected one of 'relu', 'relu6'"),
        (lambda: matmul(X, W, activation=(2, 1)), ValueError, "activation: expected low <= high"),
        (lambda: matmul(X, W, activation=(np.nan, 1)), ValueError, "activation: expected low <= high"),
        (lambda: matmul(X, W, activation=3), TypeError, "activation: expected"),
        (lambda: matmul(TINY, QTensor(W.data, 1e-30)), ValueError, "x, w: .*float32"),
        (lambda: matmul(QTensor(X.data, 1e38), HUGE), ValueError, "x, w: .*float32"),
        (lambda: matmul_dynamic(REALS, W), TypeError, "w: expected a PackedWeight, made once by pack"),
        (lambda: matmul_dynamic(["a"], pack(W)), TypeError, "x: expected real numbers"),
        (lambda: matmul_dynamic(REALS.T, pack(W)), ValueError, r"same K.*\(3, 2\).*\(3, 4\)"),
        (lambda: matmul_dynamic(REALS, FILTERS), ValueError, "w: expected weights packed for a matrix product"),
        (lambda: matmul_dynamic(REALS * np.nan, pack(W)), ValueError, "x: expected real numbers, got NaN"),
        (lambda: matmul_dynamic([[np.inf, 1, 2]], pack(W)), ValueError, "expected finite float32 numbers, got .*inf"),
        (lambda: matmul_dynamic([[-3e38, 3e38, 0]], pack(W)), ValueError, "width of the range overflows"),
        (lambda: matmul_dynamic(REALS, pack(W), [1.0, 2.0]), ValueError, "bias: expected 4 finite numbers"),
        (lambda: matmul_dynamic(REALS, pack(W), [np.inf] * 4), ValueError, "bias: expected 4 finite numbers"),
        (lambda: matmul_dynamic(REALS, pack(W), activation="swish"), ValueError, "activation: expected one of"),
        (lambda: matmul_dynamic(REALS * 1e-30, pack(QTensor(W.data, 1e-30))), ValueError, "x, w: .*float32"),
        (lambda: matmul(X, HUGE, out=QParams(1e-30)), ValueError, "out: scale .* too small"),
        (lambda: linear(X, QTensor(np.ones((1, 4, 3), np.int8), 1.0)), ValueError, r"w: expected \[N, K\]"),
        (
            lambda: matmul_integer(X.data.astype(int), W.data),
            TypeError,
            "a: expected .* uint8 or int8, got int64",
        ),
        (lambda: matmul_integer(X.data, W.data.astype(float)), TypeError, "b: expected .* got float64"),
        (lambda: matmul_integer(X, W.data), TypeError, "not an array"),
        (lambda: matmul_integer(X.data, W.data[0]), ValueError, r"b: expected \[..., K, N\]"),
        (lambda: matmul_integer(X.data, W.data.T), ValueError, "same K"),
        (lambda: matmul_integer(X.data[0, 0], W.data), ValueError, "same K"),
        (lambda: matmul_integer(np.ones((0, 2, 3), "u1"), np.ones((0, 3, 4), "u1")), ValueError, "not empty"),
        (lambda: matmul_integer(np.ones((2, 2, 3), "u1"), np.ones((3, 3, 4), "u1")), ValueError, "broadcast"),
        (
            lambda: matmul_integer(X.data, W.data, 256),
            ValueError,
            "a_zero_point: expected 0 to 255 for uint8",
        ),
        (lambda: matmul_integer(X.data, W.data, 0, 128), ValueError, "b_zero_point: expected -128 to 127"),
        (lambda: matmul_integer(X.data, W.data, 0.5), TypeError, "a_zero_point: expected integers"),
        (
            lambda: matmul_integer(X.data, W.data, [1, 2, 3]),
            ValueError,
            "a_zero_point: expected one, or as many",
        ),
        (
            lambda: matmul_integer(X.data, W.data, 0, [1, 2, 3]),
            ValueError,
            "b_zero_point: expected one, or as many",
        ),
        (
            lambda: matmul_integer(X.data, pack(W), 0, 0),
            ValueError,
            "b_zero_point: packed weights have their own",
        ),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_a_bias_that_is_written_to_later_is_not_kept() -> None:
    x = QTensor(np.array([[1, 2]], np.uint8), scale=1.0)
    w = pack(QTensor(np.array([[3, 5], [4, 6]], np.int8), scale=1.0))
    bias = np.zeros(2, np.float32)
    before = matmul(x, w, bias=bias)
    bias[:] = 100
    np.testing.assert_array_equal(matmul(x, w, bias=np.zeros(2, np.float32)), before)
    np.testing.assert_array_equal(matmul(x, w, bias=bias), before + 100)
