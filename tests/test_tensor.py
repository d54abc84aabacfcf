"""QParams, QTensor, quantize and dequantize: numbers against ONNX, structure against NumPy."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx_node import run_node

from pyq.tensor import QParams, QTensor, choose_qparams, dequantize, quantize

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=5)
finite = st.floats(-1e6, 1e6, width=32)


def per_axis_tensor(shape: tuple[int, ...], axis: int) -> QTensor:
    """A QTensor with a scale and a zero point of its own at each index of `axis`."""
    rng = np.random.default_rng(hash((shape, axis)) & 0xFFFF)
    n = shape[axis]
    data = rng.integers(-128, 128, shape).astype(np.int8)
    return QTensor(data, np.arange(1, n + 1) / 8, rng.integers(-128, 128, n), axis)


@st.composite
def tensors(draw: st.DrawFn) -> QTensor:
    shape = draw(SHAPES)
    return per_axis_tensor(shape, draw(st.integers(0, len(shape) - 1)))


# --- quantize and dequantize -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("zero_point", [0, 1, 100])
def test_quantize_rounds_every_tie_to_even_and_saturates(dtype: str, zero_point: int) -> None:
    limits = np.iinfo(dtype)
    steps = np.arange(-600, 601) / np.float32(2)
    expected = [min(max(round(float(s)) + zero_point, limits.min), limits.max) for s in steps]
    q = quantize(steps * np.float32(0.25), QParams(0.25, zero_point, dtype))
    assert q.data.dtype == dtype
    assert q.data.tolist() == expected


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_quantize_and_dequantize_equal_onnx(dtype: str, axis: int | None) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0, 40, (5, 6, 7)).astype(np.float32)
    size = () if axis is None else x.shape[axis]
    scale = rng.uniform(0.01, 1, size).astype(np.float32)
    zero_point = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, size).astype(dtype)
    attributes = {} if axis is None else {"axis": axis}
    q = quantize(x, QParams(scale, zero_point, dtype, axis))
    np.testing.assert_array_equal(q.data, run_node("QuantizeLinear", x, scale, zero_point, **attributes))
    real = run_node("DequantizeLinear", q.data, scale, zero_point, **attributes)
    np.testing.assert_array_equal(q.dequantize(), real)
    assert dequantize(q).dtype == np.float32


@settings(max_examples=60)
@given(hnp.arrays(np.float32, SHAPES, elements=finite))
def test_asymmetric_parameters_equal_dynamic_quantize_linear(x: np.ndarray) -> None:
    if 0 < np.abs(x).max() < 1e-30:
        x = x * np.float32(1e30)  # onnx divides by a scale that underflows to 0 there
    data, scale, zero_point = run_node("DynamicQuantizeLinear", x, outputs=3)
    q = quantize(x)
    if x.any():  # a range of zero width has scale 1 here, 0 there
        assert (q.scale, q.zero_point) == (scale, zero_point)
        np.testing.assert_array_equal(q.data, data)
    else:
        assert (q.scale, q.zero_point, q.data.any()) == (1, 0, False)


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, SHAPES, elements=finite),
    st.sampled_from(["uint8", "int8"]),
    st.booleans(),
    st.booleans(),
)
def test_error_is_at_most_half_a_step(x: np.ndarray, dtype: str, symmetric: bool, reduce_range: bool) -> None:
    q = quantize(x, dtype, symmetric=symmetric, reduce_range=reduce_range)
    error = np.abs(q.dequantize().astype(np.float64) - x)
    assert error.max() <= 0.5001 * q.scale + 1e-40


@pytest.mark.parametrize(
    ("dtype", "symmetric", "reduce_range", "bounds"),
    [
        ("int8", True, False, (-127, 127)),
        ("int8", True, True, (-64, 64)),
        ("int8", False, False, (-128, 127)),
        ("int8", False, True, (-64, 63)),
        ("uint8", False, False, (0, 255)),
        ("uint8", False, True, (0, 127)),
        ("uint8", True, False, (0, 255)),
    ],
)
def test_range_that_quantize_uses(dtype: str, symmetric: bool, reduce_range: bool, bounds: tuple[int, int]) -> None:
    params = choose_qparams(-1.0, 1.0, dtype, symmetric, reduce_range)
    assert (params.qmin, params.qmax) == bounds
    q = quantize(np.linspace(-9, 9, 99), params)
    assert (q.data.min(), q.data.max()) == bounds
    if symmetric:
        assert params.zero_point == (0 if dtype == "int8" else 128)


ANY_FLOAT = st.floats(allow_nan=True, allow_infinity=True) | st.floats(width=32, allow_nan=False)


@settings(max_examples=300)
@given(ANY_FLOAT, ANY_FLOAT, st.sampled_from([None, True, False]), st.sampled_from(["uint8", "int8"]), st.booleans())
@example(0.0, 1e-45, None, "uint8", False)  # a scale that is subnormal, or none at all
@example(-1e-43, 1e-43, None, "uint8", False)
@example(-3.4e38, 3.4e38, None, "uint8", False)
def test_one_range_gets_the_same_parameters_as_one_of_several(
    lo: float, hi: float, symmetric: bool | None, dtype: str, reduce_range: bool
) -> None:
    def chosen(*bounds: Any, axis: int | None = None) -> Any:
        try:
            with np.errstate(over="ignore"):
                return choose_qparams(*bounds, dtype, symmetric, reduce_range, axis=axis)
        except ValueError as error:
            return str(error).partition("got")[0]

    one, several = chosen(lo, hi), chosen([lo], [hi], axis=0)
    if isinstance(one, str):
        assert one == several
        return
    assert not (one.scale.flags.writeable or one.zero_point.flags.writeable)
    again = QParams(one.scale, one.zero_point, one.dtype, None, one.qmin, one.qmax)
    assert one == again
    assert (one.scale, one.zero_point) == (several.scale[0], several.zero_point[0])
    assert (one.qmin, one.qmax) == (several.qmin, several.qmax)


def test_qmax_bounds_the_range() -> None:
    assert np.abs(quantize(np.linspace(-1, 1, 99), "int8", qmax=31).data).max() == 31
    assert quantize(np.linspace(0, 1, 99), qmax=15).data.max() == 15


def test_default_is_symmetric_for_int8_and_per_axis_on_request() -> None:
    x = np.array([[1.0, -2.0], [0.5, 8.0]], np.float32)
    q = quantize(x, "int8", axis=-1)
    assert q.axis == 1
    np.testing.assert_array_equal(q.scale, np.float32([1, 8]) / np.float32(127))
    np.testing.assert_array_equal(q.zero_point, [0, 0])
    assert quantize(x).zero_point == round(2 / (10 / 255))


def test_infinities_saturate_and_int32_saturates_exactly() -> None:
    q = quantize([-np.inf, np.inf], QParams(1.0, 3))
    assert q.data.tolist() == [0, 255]
    q = quantize([-3e9, -(2.0**31), 2.0**31, 3e9, 2.0**30], QParams(1.0, 0, "int32"))
    assert q.data.tolist() == [-(2**31), -(2**31), 2**31 - 1, 2**31 - 1, 2**30]


def test_zero_width_and_subnormal_ranges_have_scale_one() -> None:
    assert quantize(np.zeros(3)).scale == 1
    assert quantize(np.zeros((2, 0)), "int8").shape == (2, 0)
    assert quantize(np.full(2, 1e-45, np.float32)).scale == 1


# --- structure ----------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.data())
def test_indexing_commutes_with_dequantize(data: st.DataObject) -> None:
    q = data.draw(tensors())
    index = data.draw(hnp.basic_indices(q.shape, allow_newaxis=True, allow_ellipsis=True))
    part = q[index]
    np.testing.assert_array_equal(part.dequantize(), q.dequantize()[index])
    assert np.shares_memory(part.data, q.data) or part.data.size == 0


@settings(max_examples=60)
@given(st.data())
def test_transpose_commutes_with_dequantize(data: st.DataObject) -> None:
    q = data.draw(tensors())
    order = data.draw(st.permutations(range(q.ndim)))
    order = [a - q.ndim if data.draw(st.booleans()) else a for a in order]
    np.testing.assert_array_equal(q.transpose(*order).dequantize(), q.dequantize().transpose(order))
    np.testing.assert_array_equal(q.T.dequantize(), q.dequantize().T)


@pytest.mark.parametrize(
    ("old", "axis", "new"),
    [
        ((2, 3, 4), 1, (2, 3, 2, 2)),
        ((2, 3, 4), 1, (1, 2, 3, 4)),
        ((2, 3, 4), 2, (6, 4)),
        ((2, 3, 4), 2, (-1, 4)),
        ((2, 3, 4), 0, (2, 12)),
        ((3, 3, 3), 1, (3, 3, 3, 1)),
        ((4, 1, 4), 1, (4, 1, 4)),
    ],
)
def test_reshape_keeps_the_axis(old: tuple[int, ...], axis: int, new: tuple[int, ...]) -> None:
    q = per_axis_tensor(old, axis)
    np.testing.assert_array_equal(q.reshape(new).dequantize(), q.dequantize().reshape(new))
    np.testing.assert_array_equal(q.reshape(*new).dequantize(), q.dequantize().reshape(new))


@pytest.mark.parametrize(("axis", "new"), [(1, (2, 12)), (1, (3, 2, 4)), (0, (24,)), (2, (2, 3, 2, 2))])
def test_reshape_that_breaks_the_axis_is_an_error(axis: int, new: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"quantization axis {axis} of .* must stay one dimension"):
        per_axis_tensor((2, 3, 4), axis).reshape(new)


def test_reshape_is_free_when_quantized_per_tensor() -> None:
    q = QTensor(np.arange(24, dtype=np.uint8), 0.5, 3)
    assert q.reshape(2, -1).shape == (2, 12)


def test_arrays_are_read_only_views() -> None:
    data = np.arange(6, dtype=np.int8).reshape(2, 3)
    q = QTensor(data, [0.5, 1.0], axis=0)
    assert np.shares_memory(q.data, data)
    assert data.flags.writeable
    for array in (q.data, q.scale, q.zero_point, q[0].data, q.T.data, q.reshape(2, 3, 1).data):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    with pytest.raises(AttributeError):
        q.params.qmin = 3  # type: ignore[misc]
    with pytest.raises(AttributeError):
        q.axis = 1  # type: ignore[misc]


def test_no_silent_conversion_to_an_array() -> None:
    with pytest.raises(TypeError, match="dequantize"):
        np.asarray(QTensor(np.arange(3, dtype=np.uint8), 1.0))
    with pytest.raises(TypeError, match="does not support ufuncs"):
        np.add(QTensor(np.arange(3, dtype=np.uint8), 1.0), 1)


def test_equality_is_of_whole_objects() -> None:
    data = np.arange(6, dtype=np.int8).reshape(2, 3)
    q = QTensor(data, [0.5, 1.0], [1, 2], axis=0)
    assert (q == QTensor(data.copy(), [0.5, 1.0], [1, 2], axis=-2)) is True
    others: list[Any] = [
        QTensor(data + np.int8(1), [0.5, 1.0], [1, 2], axis=0),
        QTensor(data, [0.5, 2.0], [1, 2], axis=0),
        QTensor(data, [0.5, 1.0], [1, 1], axis=0),
        QTensor(data.view(np.uint8), [0.5, 1.0], [1, 2], axis=0),
        QTensor(data[:, :2], [0.5, 1.0], [1, 2], axis=0),
        QTensor(data, 0.5, 1),
        data,
        None,
    ]
    assert all(q != other for other in others)
    assert QParams(0.5, 1) == QParams(0.5, 1, "uint8") != QParams(0.5, 1, qmax=127)
    for value in (q, q.params):
        with pytest.raises(TypeError, match="unhashable"):
            hash(value)


@pytest.mark.parametrize(
    "value", [per_axis_tensor((2, 3), 1), QTensor(np.zeros(2, np.uint8), 0.1), QParams(0.5, 3, qmax=9)]
)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle_round_trip_stays_immutable(value: QTensor | QParams, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(value, protocol))
    assert copy == value
    assert not copy.scale.flags.writeable


def test_repr_shows_what_matters_and_stays_short() -> None:
    text = repr(QTensor(np.zeros((200, 300), np.int8), np.full(300, 0.5), axis=1))
    for part in ("QTensor", "shape=(200, 300)", "dtype=int8", "scale=[0.5", "zero_point=[0", "axis=1"):
        assert part in text
    assert len(text) < 400
    assert repr(QParams(0.5, 3)) == "QParams(scale=0.5, zero_point=3, dtype=uint8, axis=None, qmin=0, qmax=255)"


# --- errors -------------------------------------------------------------------------------------------------

BYTES = np.zeros((2, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: quantize([1.0, np.nan]), ValueError, "x: .*NaN"),
        (lambda: quantize([1.0, np.nan], QParams(1.0)), ValueError, "x: .*NaN"),
        (lambda: quantize([[1.0], [np.nan]], axis=0), ValueError, "x: .*NaN"),
        (lambda: quantize([1.0, np.inf]), ValueError, "finite"),
        (lambda: quantize([-3e38, 3e38]), ValueError, "overflows"),
        (lambda: quantize(["a"]), TypeError, "x: expected real numbers"),
        (lambda: quantize([1j]), TypeError, "x: expected real numbers"),
        (lambda: quantize([1.0], "int16"), ValueError, "dtype: expected uint8"),
        (lambda: quantize([1.0], "nonsense"), ValueError, "dtype: expected uint8.*nonsense"),
        (lambda: quantize([1.0], "int32"), ValueError, "dtype: expected uint8 or int8, got int32"),
        (lambda: quantize([1.0], axis=1), ValueError, "axis: expected -1 to 0"),
        (
            lambda: quantize([1.0], QParams(1.0), reduce_range=True),
            ValueError,
            "not allowed when dtype is a QParams",
        ),
        (lambda: quantize([1.0], qmax=256), ValueError, "qmax: expected 1 to 255"),
        (lambda: quantize([1.0], qmax=9, reduce_range=True), ValueError, "qmax, reduce_range"),
        (lambda: choose_qparams(2.0, 1.0), ValueError, "lo <= hi"),
        (lambda: QParams(0.0), ValueError, "scale: .*above 0"),
        (lambda: QParams(-1.0), ValueError, "scale: .*above 0"),
        (lambda: QParams(np.nan), ValueError, "scale: .*finite"),
        (lambda: QParams(np.inf), ValueError, "scale: .*finite"),
        (lambda: QParams(1e-60), ValueError, "scale: .*above 0"),
        (lambda: QParams("1"), TypeError, "scale: expected real numbers"),
        (lambda: QParams([0.1, 0.2]), ValueError, "scale: .*axis None"),
        (lambda: QParams(0.1, axis=0), ValueError, "scale: .*axis 0"),
        (lambda: QParams(0.1, 256), ValueError, "zero_point: expected 0 to 255, got 256"),
        (lambda: QParams(0.1, -129, "int8"), ValueError, "zero_point: expected -128 to 127"),
        (lambda: QParams(0.1, 0.5), TypeError, "zero_point: expected integers"),
        (lambda: QParams([0.1, 0.2], [1, 2, 3], axis=0), ValueError, "zero_point: expected one, or as many"),
        (lambda: QParams(0.1, qmin=5, qmax=5), ValueError, "qmin < qmax"),
        (lambda: QTensor(BYTES.astype(np.int16), 1.0), TypeError, "data: expected uint8, int8 or int32"),
        (lambda: QTensor([1.0], 1.0), TypeError, "data: expected .*got float64"),
        (
            lambda: QTensor(BYTES, [1.0, 2.0], axis=1),
            ValueError,
            "scale: expected 3, one for each index of axis 1, got 2",
        ),
        (lambda: QTensor(BYTES, [1.0, 2.0], axis=2), ValueError, "axis: expected -2 to 1"),
        (lambda: QTensor(BYTES, 1.0)[[0, 1]], TypeError, "index: expected integers"),
        (lambda: QTensor(BYTES, 1.0)[True], TypeError, "index: expected integers"),
        (lambda: QTensor(BYTES, 1.0)[BYTES > 0], TypeError, "index: expected integers"),
        (lambda: QTensor(BYTES, 1.0)[0, 0, 0], IndexError, "2 dimensions"),
        (lambda: QTensor(BYTES, 1.0)[2], IndexError, "out of bounds"),
        (lambda: QTensor(BYTES, 1.0)[..., ...], IndexError, "2 dimensions"),
        (lambda: QTensor(BYTES, 1.0).transpose(0, 0), ValueError, "repeated axis"),
        (lambda: dequantize(BYTES), TypeError, "q: expected a QTensor, got ndarray"),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
