"""Transposed convolutions on every backend: a scatter in int64 and ONNX as second opinions, packing, errors."""

from __future__ import annotations

from typing import Any

import exact
import numpy as np
import pytest
from exact import full_range
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_node import run_node

from pyq.conv_transpose import conv_transpose, conv_transpose_integer
from pyq.ops import conv_integer
from pyq.qparams import QParams, quantize_array
from pyq.tensor import QTensor, quantize
from pyq.transposed import pack_transposed

BYTES = ["uint8", "int8"]

pytestmark = pytest.mark.usefixtures("backend")


@settings(max_examples=100)
@given(st.data())
def test_equals_the_scatter(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    rng = np.random.default_rng(draw(0, 99))
    depthwise = data.draw(st.booleans())
    group, depth, filters = (draw(2, 40), 1, 1) if depthwise else (draw(1, 3), draw(1, 9), draw(1, 20))
    rank = draw(1, 3)
    kernel, strides, dilations, sizes = (tuple(draw(1, top) for _ in range(rank)) for top in (4, 4, 3, 5))
    more = tuple(draw(0, max(s, d) - 1) for s, d in zip(strides, dilations, strict=True))
    numbers = zip(sizes, kernel, strides, dilations, more, strict=True)
    full = [(n - 1) * s + (k - 1) * d + 1 + e for n, k, s, d, e in numbers]
    begins = tuple(draw(0, n - 1) for n in full)
    pads = (*begins, *(draw(0, n - 1 - begin) for n, begin in zip(full, begins, strict=True)))
    tx, tw = data.draw(st.sampled_from(BYTES)), data.draw(st.sampled_from(BYTES))
    x = full_range(rng, (draw(1, 2), group * depth, *sizes), tx)
    w = full_range(rng, (group * depth, filters, *kernel), tw)
    zx, zw = int(full_range(rng, (), tx)), full_range(rng, data.draw(st.sampled_from([(), (filters,)])), tw)
    acc = conv_transpose_integer(x, w, zx, zw, strides, pads, dilations, group, output_padding=more)
    exact.assert_same(acc, exact.conv_transpose(x, w, zx, zw, strides, pads, dilations, group, more))


@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("tw", BYTES)
def test_corners(tx: str, tw: str) -> None:
    """64 channels of extremes, where a kernel of 2 and a stride of 2 meet each input once and one of 3 twice."""
    for value in (np.iinfo(tx).min, np.iinfo(tx).max):
        for weight in (np.iinfo(tw).min, np.iinfo(tw).max):
            x = np.full((1, 64, 3, 3), value, tx)
            for zx in (np.iinfo(tx).min, np.iinfo(tx).max):
                for kernel, taps in ((2, [1] * 6), (3, [1, 1, 2, 1, 2, 1, 1])):
                    w = np.full((64, 3, kernel, kernel), weight, tw)
                    for packed in (False, True):
                        arguments = (pack_transposed(QTensor(w, 1.0), strides=(2, 2)),) if packed else (w,)
                        acc = conv_transpose_integer(x, *arguments, zx, strides=(2, 2))
                        expected = 64 * (value - zx) * weight * np.outer(taps, taps)
                        np.testing.assert_array_equal(acc, np.broadcast_to(expected, acc.shape))


ATTRIBUTES: dict[str, dict[str, Any]] = {
    "plain": {},
    "pads": {"strides": [2, 3], "pads": [1, 0, 2, 1]},
    "output_padding": {"strides": [3, 2], "pads": [1, 2, 0, 1], "output_padding": [2, 1]},
    "dilations": {"strides": [2, 2], "dilations": [2, 3]},
    "a stride beyond the kernel": {"strides": [4, 5]},
    "SAME_UPPER": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    "SAME_LOWER": {"strides": [2, 1], "auto_pad": "SAME_LOWER"},
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_are_those_of_onnx(name: str) -> None:
    rng = np.random.default_rng(1)
    x, w = full_range(rng, (2, 3, 5, 4), "uint8"), full_range(rng, (3, 4, 3, 3), "int8")
    expected = run_node("ConvTranspose", x.astype(np.float64) - 7, w.astype(np.float64), **ATTRIBUTES[name])
    np.testing.assert_array_equal(conv_transpose_integer(x, w, 7, **ATTRIBUTES[name]), expected)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"output_shape": [5]}, [10, 102, 20, 203, 30]),
        ({"output_shape": [6]}, [10, 102, 20, 203, 30, 300]),
        ({"output_shape": [6], "auto_pad": "SAME_UPPER"}, [1, 10, 102, 20, 203, 30]),
        ({"output_shape": [6], "pads": [9, 9]}, [10, 102, 20, 203, 30, 300]),
        ({"output_shape": [8]}, [1, 10, 102, 20, 203, 30, 300, 0]),
        ({"output_shape": [7], "output_padding": [1]}, [10, 102, 20, 203, 30, 300, 0]),
        ({"auto_pad": "VALID"}, [1, 10, 102, 20, 203, 30, 300]),
        ({"auto_pad": "SAME_UPPER"}, [1, 10, 102, 20, 203, 30]),
        ({"auto_pad": "SAME_LOWER"}, [10, 102, 20, 203, 30, 300]),
    ],
)
def test_output_shape_and_auto_pad(attributes: dict[str, Any], expected: list[int]) -> None:
    """Inputs 1, 2, 3 and taps 1, 10, 100 with stride 2; the expected rows are ONNX Runtime's."""
    x, w = np.array([[[1, 2, 3]]], np.uint8), np.array([[[1, 10, 100]]], np.uint8)
    assert conv_transpose_integer(x, w, strides=[2], **attributes).ravel().tolist() == expected


def test_same_padding_of_a_kernel_shorter_than_the_stride() -> None:
    """ONNX asks for size * stride outputs; what no tap reaches stands at the end."""
    x, w = np.array([[[1, 2, 3]]], np.uint8), np.array([[[5]]], np.uint8)
    for auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        y = conv_transpose_integer(x, w, strides=[3], auto_pad=auto_pad)
        assert y.ravel().tolist() == [5, 0, 0, 10, 0, 0, 15, 0, 0]


def test_is_the_gradient_of_the_convolution() -> None:
    """<conv(x, w), y> = <x, conv_transpose(y, w)>: the definition, on shapes beyond those of the scatter."""
    rng = np.random.default_rng(2)
    x, w = full_range(rng, (1, 48, 23, 17), "int8"), full_range(rng, (40, 48, 5, 3), "int8")
    attributes: dict[str, Any] = {"strides": (2, 3), "pads": (2, 1, 1, 0), "dilations": (1, 2)}
    forward = conv_integer(x, w, **attributes)
    y = full_range(rng, forward.shape, "int8")
    back = conv_transpose_integer(y, w, output_shape=None, output_padding=(1, 1), **attributes)
    assert back.shape == x.shape
    assert np.vdot(forward.astype(np.int64), y) == np.vdot(x.astype(np.int64), back)


def test_layouts_agree_and_carry_the_memory_order() -> None:
    rng = np.random.default_rng(3)
    x, w = full_range(rng, (2, 5, 7, 8), "uint8"), full_range(rng, (5, 6, 3, 3), "int8")
    first = conv_transpose_integer(x, w, 9, strides=(2, 1))
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    last = conv_transpose_integer(channels_last, w, 9, strides=(2, 1), layout="NHWC")
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), first)
    assert last.flags.c_contiguous
    assert first.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize("group", [1, 2, 6])
def test_packed_weights(group: int) -> None:
    rng = np.random.default_rng(4)
    x, w = full_range(rng, (1, 6, 9, 9), "int8"), full_range(rng, (6, 4, 3, 4), "uint8")
    zw = full_range(rng, (4,), "uint8")
    attributes: dict[str, Any] = {"strides": (2, 3), "dilations": (1, 2), "group": group}
    packed = pack_transposed(QTensor(w, np.ones(4), zw, axis=1), **attributes)
    expected = conv_transpose_integer(x, w, -3, zw, **attributes)
    np.testing.assert_array_equal(conv_transpose_integer(x, packed, -3), expected)
    np.testing.assert_array_equal(conv_transpose_integer(x, packed, -3, **attributes), expected)


def test_phases_hold_each_tap_once() -> None:
    w = QTensor(np.arange(1, 61, dtype=np.uint8).reshape(2, 3, 5, 2), 1.0)
    packed = pack_transposed(w, strides=(3, 4), dilations=(2, 2))
    shapes = {residues: None if weight is None else weight.shape for residues, weight in packed.sets}
    assert shapes == {
        ((0, 0), (0, 2), (2, 0), (2, 2)): (12, 2, 2, 1),
        ((0, 1), (0, 3), (2, 1), (2, 3)): None,
        ((1, 0), (1, 2)): (6, 2, 1, 1),
        ((1, 1), (1, 3)): None,
    }
    assert sorted(np.concatenate([weight.unpack().ravel() for weight in packed.weights])) == list(range(1, 61))
    assert packed.nbytes == sum(weight.nbytes for weight in packed.weights)


def test_images_may_be_none() -> None:
    x, w = np.zeros((0, 3, 5, 5), np.uint8), np.ones((3, 2, 1, 3), np.int8)
    assert conv_transpose_integer(x, w, strides=(2, 2)).shape == (0, 2, 9, 11)


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("tx", BYTES)
@pytest.mark.parametrize("tw", BYTES)
@pytest.mark.parametrize("tout", BYTES)
def test_quantized_result(tx: str, tw: str, tout: str, group: int) -> None:
    """With scales that are powers of two the reals are exact in float64, and so is their quantization."""
    rng = np.random.default_rng(5)
    x, w = full_range(rng, (2, 4, 6, 5), tx), full_range(rng, (4, 6 // group, 3, 4), tw)
    zx, zw, out = full_range(rng, (), tx), full_range(rng, (6 // group,), tw), QParams(0.25, 10, tout)
    sx, sw = np.float32(2**-7), np.exp2(rng.integers(-6, -3, 6 // group)).astype(np.float32)
    bias = rng.integers(-9999, 9999, 6) * (sx * np.tile(sw, group))
    attributes: dict[str, Any] = {"strides": (2, 3), "pads": (1, 0, 0, 1), "group": group}
    y = conv_transpose(QTensor(x, sx, zx), QTensor(w, sw, zw, 1), bias, output_padding=(1, 2), out=out, **attributes)
    acc = exact.conv_transpose(x, w, int(zx), zw, output_padding=(1, 2), **attributes)
    reals = (acc * (sx * np.tile(sw, group))[:, None, None] + bias[:, None, None]).astype(np.float32)
    assert isinstance(y, QTensor)
    assert len(np.unique(y.data)) > 50
    np.testing.assert_array_equal(y.data, quantize_array(reals, out))
    assert (y.scale, y.zero_point, y.dtype) == (out.scale, out.zero_point, tout)


@pytest.mark.parametrize("activation", [None, "relu", "relu6", (-0.5, 0.75)])
def test_float_result_approximates_the_float_operator(activation: Any) -> None:
    rng = np.random.default_rng(6)
    x = quantize(rng.normal(size=(2, 6, 7, 6)))
    w = quantize(rng.normal(size=(6, 4, 3, 3)), "int8", axis=1)
    bias = rng.normal(size=4).astype(np.float32)
    y = conv_transpose(x, w, bias, (2, 4), (0, 1, 1, 0), (1, 2), activation=activation)
    expected = run_node(
        "ConvTranspose", x.dequantize(), w.dequantize(), bias, strides=[2, 4], pads=[0, 1, 1, 0], dilations=[1, 2]
    )
    bounds = {"relu": (0, None), "relu6": (0, 6)}.get(activation, activation) if activation else (-np.inf, np.inf)
    assert isinstance(y, np.ndarray)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, np.clip(expected, *bounds), atol=1e-4)


def test_outputs_without_taps_are_the_bias() -> None:
    x, w = QTensor(np.full((1, 1, 2, 2), 200, np.uint8), 1.0, 3), QTensor(np.full((1, 1, 1, 1), 7, np.int8), 1.0)
    y = conv_transpose(x, w, [2.5], strides=(3, 3))
    assert isinstance(y, np.ndarray)
    expected = np.full((4, 4), 2.5)
    expected[::3, ::3] += 197 * 7
    np.testing.assert_array_equal(y[0, 0], expected)


def test_activations_beyond_the_packing_are_refused() -> None:
    w = pack_transposed(QTensor(np.ones((1, 1, 2), np.int8), 1.0), strides=[2], amax=127)
    assert conv_transpose_integer(np.array([[[127]]], np.uint8), w).tolist() == [[[127, 127]]]
    with pytest.raises(ValueError, match="amax=127"):
        conv_transpose_integer(np.array([[[128]]], np.uint8), w)


X = QTensor(np.ones((1, 4, 5, 5), np.uint8), 0.5)
W = QTensor(np.ones((4, 6, 3, 3), np.int8), 0.5)
ROW = QTensor(np.ones((4, 6, 3), np.int8), 0.5)
PACKED = pack_transposed(W, strides=(2, 2))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conv_transpose(X.data, W), TypeError, "x: expected a QTensor"),
        (lambda: conv_transpose(X, W.data), TypeError, "w: expected a QTensor or a PackedTransposed"),
        (lambda: conv_transpose(X[0, 0], W), ValueError, "x: expected 3 to 5 dimensions"),
        (lambda: conv_transpose(X, ROW), ValueError, "w: expected .* 4 dimensions as x"),
        (lambda: conv_transpose(X[:, :3], W), ValueError, "x: expected 4 channels .* got 3"),
        (lambda: conv_transpose(X, W, group=3), ValueError, "group: got 3, expected a divisor of the 4 input"),
        (lambda: conv_transpose(X, W, group=0), ValueError, "group: expected an integer of at least 1, got 0"),
        (lambda: conv_transpose(X, W, group="1"), TypeError, "group: expected an integer, got '1'"),
        (lambda: conv_transpose(X, PACKED, group=2), ValueError, "group: the weights were packed for 1, got 2"),
        (lambda: conv_transpose(X, PACKED, strides=(1, 1)), ValueError, r"strides: .* packed for \(2, 2\)"),
        (lambda: conv_transpose(X, PACKED, strides=2), TypeError, "strides: expected 2 integers, got 2"),
        (lambda: conv_transpose(X, PACKED, dilations=(1, 2)), ValueError, r"dilations: .* packed for \(1, 1\)"),
        (lambda: conv_transpose(X, QTensor(W.data, [1.0] * 4, axis=0)), ValueError, "w: quantized along axis 0"),
        (lambda: conv_transpose(X, QTensor(W.data[:, :0], 1.0)), ValueError, "w: expected .* not empty"),
        (lambda: conv_transpose(X, W, strides=(1,)), ValueError, r"strides: expected 2 integers of at least 1"),
        (lambda: conv_transpose(X, W, strides=(1, 0)), ValueError, "strides: expected 2 integers of at least 1"),
        (lambda: conv_transpose(X, W, strides=(1.5, 1)), TypeError, "strides: expected 2 integers"),
        (lambda: conv_transpose(X, W, dilations=(0, 1)), ValueError, "dilations: expected 2 integers of at least 1"),
        (lambda: conv_transpose(X, W, pads=(1, 1)), ValueError, "pads: expected 4 integers"),
        (lambda: conv_transpose(X, W, pads=(1, 1, 1, -1)), ValueError, "pads: expected 4 integers of at least 0"),
        (lambda: conv_transpose(X, W, pads=(4, 0, 3, 0)), ValueError, r"pads: expected to leave .* \[7, 7\], got"),
        (lambda: conv_transpose(X, W, output_padding=(0, 1)), ValueError, "output_padding: expected less than"),
        (lambda: conv_transpose(X, W, output_padding=(0, -1)), ValueError, "output_padding: expected 2 integers"),
        (lambda: conv_transpose(X, W, output_shape=(8, 7)), ValueError, r"output_shape: expected at most \[7, 7\]"),
        (lambda: conv_transpose(X, W, output_shape=(0, 7)), ValueError, "output_shape: expected 2 integers of at"),
        (lambda: conv_transpose(X, W, output_shape=(1, 6, 7, 7)), ValueError, "output_shape: expected 2 integers"),
        (lambda: conv_transpose(X, W, auto_pad="SAME"), ValueError, "auto_pad: expected one of"),
        (lambda: conv_transpose(X, W, auto_pad="VALID", pads=(1, 1, 1, 1)), ValueError, "pads: not allowed with"),
        (lambda: conv_transpose(X, W, layout="CHWN"), ValueError, "layout: expected one of 'NCHW', 'NHWC'"),
        (lambda: conv_transpose(X, W, bias=[1.0]), ValueError, "bias: expected 6 finite numbers"),
        (lambda: conv_transpose_integer(X.data.astype(int), W.data), TypeError, "x: expected .* got int64"),
        (lambda: conv_transpose_integer(X.data, W.data.astype(int)), TypeError, "w: expected .* got int64"),
        (lambda: conv_transpose_integer(X.data, W.data, -1), ValueError, "x_zero_point: expected 0 to 255"),
        (lambda: conv_transpose_integer(X.data, W.data, 0, [1, 2]), ValueError, "w_zero_point: expected one, or as"),
        (lambda: conv_transpose_integer(X.data, PACKED, 0, 0), ValueError, "w_zero_point: packed weights have"),
        (lambda: pack_transposed(W.data), TypeError, "w: expected a QTensor, got ndarray"),
        (lambda: pack_transposed(W[0, 0]), ValueError, "w: expected .* 1-D to 3-D kernel"),
        (lambda: pack_transposed(W, amax=256), ValueError, "amax: got 256"),
    ],
)
def test_errors_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
