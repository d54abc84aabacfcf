"""Convolutions on every backend: the reference and ONNX as second opinions, layouts, attributes, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import full_range
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_node import run_node

from pyq import reference
from pyq.ops import conv, conv_integer
from pyq.packing import pack
from pyq.qparams import QParams
from pyq.tensor import QTensor, quantize

BYTES = ["uint8", "int8"]


pytestmark = pytest.mark.usefixtures("backend")


@settings(max_examples=60)
@given(st.data())
def test_conv_integer_equals_the_reference(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 99))
    depthwise = data.draw(st.booleans())
    group, depth = (draw(2, 40), 1) if depthwise else (draw(1, 3), draw(1, 9))
    filters = group * (1 if depthwise else draw(1, 20))
    rank = draw(1, 3)
    kernel, strides, dilations = (tuple(draw(1, top) for _ in range(rank)) for top in (4, 3, 2))
    pads = tuple(draw(0, 3) for _ in range(2 * rank))
    sizes = tuple(draw((k - 1) * d + 1, 11) for k, d in zip(kernel, dilations, strict=True))
    tx, tw = data.draw(st.sampled_from(BYTES)), data.draw(st.sampled_from(BYTES))
    x, w = full_range(rng, (draw(1, 2), group * depth, *sizes), tx), full_range(rng, (filters, depth, *kernel), tw)
    zx, zw = int(full_range(rng, (), tx)), full_range(rng, data.draw(st.sampled_from([(), (filters,)])), tw)
    acc = conv_integer(x, w, zx, zw, strides, pads, dilations, group)
    assert acc.dtype == np.int32
    np.testing.assert_array_equal(acc, reference.conv_integer(x, w, zx, zw, strides, pads, dilations, group))


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("tw", BYTES)
def test_corners(tx: str, tw: str) -> None:
    for value in (np.iinfo(tx).min, np.iinfo(tx).max):
        for weight in (np.iinfo(tw).min, np.iinfo(tw).max):
            x, w = np.full((1, 64, 5, 5), value, tx), np.full((3, 64, 3, 3), weight, tw)
            for zx in (np.iinfo(tx).min, np.iinfo(tx).max):
                acc = conv_integer(x, w, zx, pads=(1, 1, 1, 1))
                taps = np.array([2, 3, 3, 3, 2])
                expected = 64 * (value - zx) * weight * np.outer(taps, taps)
                np.testing.assert_array_equal(acc, np.broadcast_to(expected, acc.shape))


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
def test_auto_pad_equals_onnx(auto_pad: str, strides: tuple[int, int], dilations: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, w = full_range(rng, (1, 3, 9, 10), "uint8"), full_range(rng, (4, 3, 4, 3), "int8")
    attributes = {"auto_pad": auto_pad, "strides": strides, "dilations": dilations}
    expected = run_node("Conv", x.astype(np.float64) - 7, w.astype(np.float64), **attributes)
    np.testing.assert_array_equal(conv_integer(x, w, 7, **attributes), expected)


def test_conv_integer_equals_onnx() -> None:
    rng = np.random.default_rng(2)
    x, w = full_range(rng, (2, 3, 9, 10), "uint8"), full_range(rng, (4, 3, 3, 3), "uint8")
    zx, zw = np.uint8(3), full_range(rng, (4,), "uint8")
    expected = run_node("ConvInteger", x, w, zx, zw, pads=[1, 0, 1, 0], strides=[2, 1])
    np.testing.assert_array_equal(conv_integer(x, w, zx, zw, pads=[1, 0, 1, 0], strides=[2, 1]), expected)


def test_layouts_agree_and_carry_the_memory_order() -> None:
    rng = np.random.default_rng(3)
    x, w = full_range(rng, (2, 5, 7, 8), "uint8"), full_range(rng, (6, 5, 3, 3), "int8")
    first = conv_integer(x, w, 9, pads=(1, 1, 1, 1))
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    last = conv_integer(channels_last, w, 9, pads=(1, 1, 1, 1), layout="NHWC")
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    viewed = conv_integer(channels_last.transpose(0, 3, 1, 2), w, 9, pads=(1, 1, 1, 1))
    np.testing.assert_array_equal(viewed, first)
    assert last.flags.c_contiguous
    assert viewed.transpose(0, 2, 3, 1).flags.c_contiguous
    signal = conv_integer(x[:, :, 0].transpose(0, 2, 1), w[:, :, 0], layout="NHWC")
    np.testing.assert_array_equal(signal.transpose(0, 2, 1), conv_integer(x[:, :, 0], w[:, :, 0]))


@pytest.mark.parametrize("group", [1, 2, 6])
def test_packed_filters(group: int) -> None:
    rng = np.random.default_rng(4)
    x, w = full_range(rng, (1, 6, 9, 9), "int8"), full_range(rng, (12, 6 // group, 3, 3), "uint8")
    zw = full_range(rng, (12,), "uint8")
    packed = pack(QTensor(w, np.ones(12), zw, axis=0), group=group)
    np.testing.assert_array_equal(conv_integer(x, packed, -3), conv_integer(x, w, -3, zw, group=group))
    np.testing.assert_array_equal(conv_integer(x, packed, -3, group=group), conv_integer(x, packed, -3))


def test_images_may_be_none() -> None:
    assert conv_integer(np.zeros((0, 3, 5, 5), np.uint8), np.ones((2, 3, 3, 3), np.int8)).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("tw", BYTES)
@pytest.mark.parametrize("tout", BYTES)
def test_quantized_result_equals_qlinear_conv(tx: str, tw: str, tout: str) -> None:
    # With scales that are powers of two and an even zero point, onnx.reference's float64 steps are exact too.
    rng = np.random.default_rng(5)
    x, w = full_range(rng, (2, 4, 9, 9), tx), full_range(rng, (6, 4, 3, 3), tw)
    zx, zw, zy = full_range(rng, (), tx), full_range(rng, (6,), tw), np.array(10, tout)
    sx, sw, sy = np.float32(2**-7), np.exp2(rng.integers(-6, -3, 6)).astype(np.float32), np.float32(0.5)
    bias = rng.integers(-9999, 9999, 6).astype(np.int32)
    y = conv(QTensor(x, sx, zx), QTensor(w, sw, zw, 0), bias * (sx * sw), pads=(1, 1, 1, 1), out=QParams(sy, zy, tout))
    assert isinstance(y, QTensor)
    expected = run_node("QLinearConv", x, sx, zx, w, sw, zw, sy, zy, bias, pads=[1, 1, 1, 1])
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(y.data, expected)
    assert (y.scale, y.zero_point, y.dtype) == (sy, zy, tout)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", (-0.5, 0.75)])
def test_float_result_approximates_the_float_convolution(activation: Any) -> None:
    rng = np.random.default_rng(6)
    x = quantize(rng.normal(size=(2, 6, 9, 9)))
    w = quantize(rng.normal(size=(4, 3, 3, 3)), "int8", axis=0)
    bias = rng.normal(size=4).astype(np.float32)
    y = conv(x, w, bias, (2, 1), (0, 1, 1, 0), (1, 2), 2, activation=activation)
    expected = run_node(
        "Conv", x.dequantize(), w.dequantize(), bias, strides=[2, 1], pads=[0, 1, 1, 0], dilations=[1, 2], group=2
    )
    bounds = {"relu": (0, None), "relu6": (0, 6)}.get(activation, activation) if activation else (-np.inf, np.inf)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, np.clip(expected, *bounds), atol=1e-4)


def test_padding_is_the_real_zero() -> None:
    x = QTensor(np.full((1, 1, 3, 3), 77, np.uint8), 1.0, 77)
    y = conv(x, QTensor(np.full((1, 1, 3, 3), 5, np.int8), 1.0), pads=(1, 1, 1, 1))
    assert not np.any(y)


X = QTensor(np.ones((1, 4, 5, 5), np.uint8), 0.5)
W = QTensor(np.ones((6, 4, 3, 3), np.int8), 0.5)
ROW = QTensor(np.ones((6, 4, 3), np.int8), 0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv(X.data, W), TypeError, "x: expected a QTensor"),
        (lambda: conv(X, W.data), TypeError, "w: expected a QTensor or a PackedWeight"),
        (lambda: conv(X[0, 0], W), ValueError, "x: expected 3 to 5 dimensions"),
        (lambda: conv(X, ROW), ValueError, "w: expected .* 4 dimensions as x"),
        (lambda: conv(X, pack(QTensor(np.ones((4, 6), np.int8), 1.0))), ValueError, "w: expected .* 4 dimensions"),
        (lambda: conv(X, W, group=2), ValueError, "x: expected 8 channels .* got 4"),
        (lambda: conv(X, pack(W), group=2), ValueError, "group: the weights were packed for 1, got 2"),
        (lambda: conv(X, W, group=0), ValueError, "group: expected an integer of at least 1, got 0"),
        (lambda: conv(X, W, group="1"), TypeError, "group: expected an integer, got '1'"),
        (lambda: conv(X, QTensor(W.data[:, :2], 1.0), group=4), ValueError, "x: expected 8 channels"),
        (lambda: conv(X, QTensor(W.data[:5, :2], 1.0), group=2), ValueError, "group: "),
        (lambda: conv(X, QTensor(W.data, [1.0] * 4, axis=1)), ValueError, "axis 1"),
        (lambda: conv(X[:, :, :2], W), ValueError, "x: the kernel covers 3 along spatial dimension 0"),
        (lambda: conv(X, W, dilations=(1, 3)), ValueError, "x: the kernel covers 7 along spatial dimension 1"),
        (lambda: conv(X, W, strides=(1,)), ValueError, r"strides: expected 2 integers of at least 1, got \[1\]"),
        (lambda: conv(X, W, strides=(1, 0)), ValueError, "strides: expected 2 integers of at least 1"),
        (lambda: conv(X, W, strides=2), TypeError, "strides: expected 2 integers, got 2"),
        (lambda: conv(X, W, strides=(1.5, 1)), TypeError, "strides: expected 2 integers"),
        (lambda: conv(X, W, pads=(1, 1)), ValueError, "pads: expected 4 integers"),
        (lambda: conv(X, W, pads=(1, 1, 1, -1)), ValueError, "pads: expected 4 integers of at least 0"),
        (lambda: conv(X, W, dilations=(0, 1)), ValueError, "dilations: expected 2 integers of at least 1"),
        (lambda: conv(X, W, auto_pad="SAME"), ValueError, "auto_pad: expected one of"),
        (lambda: conv(X, W, auto_pad="VALID", pads=(1, 1, 1, 1)), ValueError, "pads: not allowed with auto_pad"),
        (lambda: conv(X, W, layout="CHWN"), ValueError, "layout: expected one of 'NCHW', 'NHWC'"),
        (lambda: conv(X, W, bias=[1.0]), ValueError, "bias: expected 6 finite numbers"),
        (lambda: conv_integer(X.data.astype(int), W.data), TypeError, "x: expected .* got int64"),
        (lambda: conv_integer(X.data, W.data.astype(int)), TypeError, "w: expected .* got int64"),
        (lambda: conv_integer(X.data, W.data, -1), ValueError, "x_zero_point: expected 0 to 255"),
        (lambda: conv_integer(X.data, W.data, [1, 2, 3, 4]), ValueError, "x_zero_point: expected one"),
        (lambda: conv_integer(X.data, W.data, 0, [1, 2]), ValueError, "w_zero_point: expected one, or as many"),
        (lambda: conv_integer(X.data, pack(W), 0, 0), ValueError, "w_zero_point: packed weights have their own"),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
