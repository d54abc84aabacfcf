"""The oracle against Python's own integers, and the float convolution against onnx.reference."""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import pytest
from exact import full_range, wrapped
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_node import run_node

from pyq.backends import ConvGeometry, Epilogue, requantize_epilogue
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.reference import ReferenceBackend, conv_float, conv_integer, matmul_integer, requantize, windows
from pyq.tensor import QTensor

BYTES = ["uint8", "int8"]
INT32 = Epilogue(np.dtype(np.int32))


def python_matmul(a: np.ndarray, b: np.ndarray, za: int, zb: list[int]) -> list[list[int]]:
    columns = list(zip(*b.tolist(), strict=True))
    return [
        [
            wrapped(sum((x - za) * (y - z) for x, y in zip(row, column, strict=True)))
            for column, z in zip(columns, zb, strict=True)
        ]
        for row in a.tolist()
    ]


@settings(max_examples=60)
@given(
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from(BYTES),
    st.sampled_from(BYTES),
    st.data(),
)
def test_matmul_integer_equals_python(m: int, k: int, n: int, ta: str, tb: str, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    a, b, za, zb = (full_range(rng, shape, t) for shape, t in (((m, k), ta), ((k, n), tb), ((), ta), ((n,), tb)))
    acc = matmul_integer(a, b, za, zb)
    assert acc.dtype == np.int32
    assert acc.tolist() == python_matmul(a, b, int(za), zb.tolist())


@pytest.mark.parametrize("a", [0, 255])
@pytest.mark.parametrize("za", [0, 255])
@pytest.mark.parametrize("b", [-128, 127])
@pytest.mark.parametrize("zb", [-128, 127])
def test_corners_wrap_past_two_to_the_31(a: int, za: int, b: int, zb: int) -> None:
    k = 70_000  # 70000 * 255 * 255 is above 2**32
    acc = matmul_integer(np.full((1, k), a, np.uint8), np.full((k, 1), b, np.int8), za, zb)
    assert acc.item() == wrapped(k * (a - za) * (b - zb))


@pytest.mark.parametrize("k", [33_025, 33_026, 66_051, 66_052])
def test_wraps_at_the_exact_boundary(k: int) -> None:
    a, b = np.full((1, k), 255, np.uint8), np.full((k, 1), 255, np.uint8)
    b[-1] = 2
    assert matmul_integer(a, b).item() == wrapped((k - 1) * 65025 + 510)


@settings(max_examples=30)
@given(st.data())
def test_conv_integer_equals_its_definition(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 99))
    group, depth, per_group, kh, kw = draw(1, 3), draw(1, 3), draw(1, 2), draw(1, 3), draw(1, 3)
    strides, dilations, pads = (
        (draw(1, 2), draw(1, 2)),
        (draw(1, 2), draw(1, 2)),
        (draw(0, 2), draw(0, 2), draw(0, 2), draw(0, 2)),
    )
    height, width = draw((kh - 1) * dilations[0] + 1, 7), draw((kw - 1) * dilations[1] + 1, 7)
    tx, tw = data.draw(st.sampled_from(BYTES)), data.draw(st.sampled_from(BYTES))
    x, w = (
        full_range(rng, (2, group * depth, height, width), tx),
        full_range(rng, (group * per_group, depth, kh, kw), tw),
    )
    zx, zw = int(full_range(rng, (), tx)), full_range(rng, (len(w),), tw)
    place = strides, pads, dilations, group
    np.testing.assert_array_equal(conv_integer(x, w, zx, zw, *place), exact.conv(x, w, zx, zw, *place))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "attributes"),
    [
        ((2, 3, 8, 9), (4, 3, 3, 3), {"strides": (2, 1), "pads": (1, 0, 2, 1)}),
        ((1, 4, 7, 7), (6, 2, 3, 2), {"group": 2, "dilations": (2, 3)}),
        ((1, 5, 6, 6), (5, 1, 3, 3), {"group": 5, "pads": (1, 1, 1, 1)}),
        ((2, 3, 11), (4, 3, 4), {"strides": (3,), "pads": (2, 0)}),
        ((1, 2, 5, 5, 5), (3, 2, 2, 2, 2), {"pads": (1, 0, 1, 0, 1, 0)}),
        ((2, 3, 5, 5), (7, 3, 1, 1), {}),
    ],
)
def test_conv_float_equals_onnx(x_shape: Any, w_shape: Any, attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    x, w, bias = (rng.normal(size=shape).astype(np.float32) for shape in (x_shape, w_shape, w_shape[:1]))
    y = conv_float(x, w, bias, **attributes)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, run_node("Conv", x, w, bias, **attributes), rtol=1e-4, atol=1e-5)


def test_windows_refuses_a_kernel_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="x: spatial size"):
        windows(np.zeros((1, 1, 4, 4)), (3, 3), (1, 1), (1, 2))


# --- requantize ---------------------------------------------------------------------------------------------


def python_requantized(acc: int, multiplier: np.float32, zero_point: int, low: int, high: int) -> int:
    return min(max(round(float(np.float32(acc) * multiplier)) + zero_point, low), high)


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("zero_point", [0, 7, 127])
def test_requantize_every_tie_and_clamp(dtype: str, zero_point: int) -> None:
    acc = np.arange(-1100, 1101, dtype=np.int32)[:, None]  # quarters: every tie from -275 to 275
    limits = np.iinfo(dtype)
    for low, high in ((None, None), (zero_point, None), (zero_point, min(zero_point + 24, limits.max))):
        epilogue = requantize_epilogue(0.5, np.float32(0.5), QParams(1.0, zero_point, dtype), None, low, high)
        ends = limits.min if low is None else low, limits.max if high is None else high
        expected = [python_requantized(int(v), np.float32(0.25), zero_point, *ends) for v in acc.ravel()]
        result = requantize(acc, epilogue)
        assert result.dtype == dtype
        assert result.ravel().tolist() == expected


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("power", [24, 25, 30])
def test_accumulators_beyond_two_to_the_24_round_to_float32_first(sign: int, power: int) -> None:
    acc = (sign * (2**power + np.arange(-2000, 2000))).astype(np.int32)[:, None]
    scale = np.float32(100 / 2**power)
    result = requantize(acc, requantize_epilogue(scale, np.float32(1), QParams(1.0, 0, "int8")))
    expected = [python_requantized(int(v), scale, 0, -128, 127) for v in acc.ravel()]
    assert result.ravel().tolist() == expected
    floats = requantize(acc, Epilogue(np.dtype(np.float32), multiplier=np.ones(1, np.float32)))
    assert floats.ravel().tolist() == [float(np.float32(int(v))) for v in acc.ravel()]


def test_extreme_accumulators_saturate_without_warning() -> None:
    acc = np.array([[-(2**31), 2**31 - 1, 0]], np.int32)
    huge = Epilogue(np.dtype(np.uint8), multiplier=np.full(3, 3e38, np.float32), zero_point=5)
    assert requantize(acc, huge).tolist() == [[0, 255, 5]]


def test_bias_wraps_per_column_and_table_comes_last() -> None:
    acc = np.array([[2**31 - 1, 10]], np.int32)
    bias = np.array([1, -3], np.int32)
    assert requantize(acc, Epilogue(np.dtype(np.int32), bias)).tolist() == [[-(2**31), 7]]
    table = np.arange(255, -1, -1, dtype=np.uint8)
    epilogue = Epilogue(np.dtype(np.int8), bias, np.ones(1, np.float32), table=table)
    assert requantize(acc, epilogue).tolist() == [[127, -8]]  # bytes 128 and 7, each taken from 255


def test_float_epilogue_adds_offset_after_the_product_and_clamps() -> None:
    acc = np.array([[-4, 4, 400]], np.int32)
    offset = np.array([0.5, 0.5, 0.5], np.float32)
    epilogue = Epilogue(np.dtype(np.float32), None, np.full(3, 0.25, np.float32), offset, 0, 0.0, 6.0)
    assert requantize(acc, epilogue).tolist() == [[0.0, 1.5, 6.0]]
    one_sided = Epilogue(np.dtype(np.float32), None, np.ones(1, np.float32), None, 0, None, 5.0)
    assert requantize(acc, one_sided).tolist() == [[-4.0, 4.0, 5.0]]


# --- the backend --------------------------------------------------------------------------------------------

BACKEND = ReferenceBackend()


def test_backend_writes_to_out_and_returns_it() -> None:
    rng = np.random.default_rng(3)
    x, w = full_range(rng, (4, 9), "uint8"), pack(QTensor(full_range(rng, (9, 5), "int8"), 1.0))
    out = np.empty((4, 10), np.int32)[:, ::2]
    assert BACKEND.matmul(x, 3, w, INT32, out) is out
    np.testing.assert_array_equal(out, BACKEND.matmul(x, 3, w, INT32))


@pytest.mark.parametrize("size", [(9,), (9, 5), (4, 5, 3)])
def test_backend_takes_images_of_any_dimensions_channels_last(size: tuple[int, ...]) -> None:
    rng, rank = np.random.default_rng(4), len(size)
    x, w = full_range(rng, (2, *size, 4), "int8"), full_range(rng, (3, 4, *(3,) * rank), "int8")
    geometry = ConvGeometry((1,) * rank, (1,) * 2 * rank, (1,) * rank)
    y = BACKEND.conv(x, -5, pack(QTensor(w, 1.0)), geometry, INT32)
    expected = conv_integer(np.moveaxis(x, -1, 1), w, -5, pads=geometry.pads)
    np.testing.assert_array_equal(np.moveaxis(y, -1, 1), expected)


@pytest.mark.parametrize(("dtype", "low"), [("uint8", 0), ("int8", -64)])
def test_backend_refuses_activations_above_amax(dtype: str, low: int) -> None:
    w = pack(QTensor(np.ones((2, 1), np.int8), 1.0), amax=127)
    within = np.array([[low, low + 127]]).astype(dtype)
    assert BACKEND.matmul(within, 0, w, INT32).item() == 2 * low + 127
    for beyond in ([low, low + 128], [low - 1, low]):
        if np.iinfo(dtype).min <= beyond[0]:
            with pytest.raises(ValueError, match=r"amax=127"):
                BACKEND.matmul(np.array([beyond]).astype(dtype), 0, w, INT32)


@pytest.mark.parametrize("dtype", BYTES)
def test_lookup_indexes_by_bits_and_keeps_the_memory_order(dtype: str) -> None:
    x = np.arange(256, dtype=np.uint8).view(dtype).reshape(2, 8, 16).transpose(0, 2, 1)
    table = np.random.default_rng(5).permutation(256).astype(np.uint8)
    y = BACKEND.lookup(x, table, np.dtype(np.int8))
    np.testing.assert_array_equal(y.transpose(0, 2, 1).reshape(-1).view(np.uint8), table)
    assert y.strides == x.strides


@pytest.mark.parametrize("op", ["add", "sub", "mul", "div"])
def test_binary_is_the_float_chain(op: str) -> None:
    names = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}
    a = np.arange(256, dtype=np.uint8)[:, None]
    b = np.delete(np.arange(-128, 128), 131).astype(np.int8)[None]  # all but the zero point
    pa, pb, po = QParams(0.1, 100), QParams(0.07, 3, "int8"), QParams(0.3, 31)
    real = [run_node("DequantizeLinear", q, p.scale, p.zero_point.astype(q.dtype)) for q, p in ((a, pa), (b, pb))]
    expected = run_node("QuantizeLinear", run_node(names[op], *real), po.scale, np.uint8(31))
    np.testing.assert_array_equal(BACKEND.binary(op, a, pa, b, pb, po), expected)
