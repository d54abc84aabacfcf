"""The public integer operations: matrix products and convolutions of quantized tensors and of raw integers.

Arguments are checked here, brought to the one form that kernels know (a uint8 or int8 matrix or NHWC images,
and a `PackedWeight`), and given to the current backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pyq.backends import ConvGeometry, Epilogue, current_backend
from pyq.checks import LAYOUTS, check_activation, check_bytes, check_choice, check_integer
from pyq.geometry import place
from pyq.layout import borrow_nhwc
from pyq.packing import PackedWeight, pack
from pyq.products import (
    ACCUMULATE,
    Activation,
    check_zero_points,
    epilogue_of,
    in_layout,
    make_epilogue,
    one_zero_point,
    quantized,
    real_bounds,
    unscaled,
    unwanted_zero_point,
)
from pyq.qparams import QParams, as_float32
from pyq.tensor import QTensor, quantize
from pyq.unpacked import multiply, wrong_shapes


def matmul(
    x: QTensor,
    w: QTensor | PackedWeight,
    bias: npt.ArrayLike | None = None,
    out: QParams | None = None,
    activation: Activation = None,
) -> np.ndarray | QTensor:
    """Matrix product `x @ w + bias` of quantized tensors, exact in the integers.

    x: uint8 or int8 [..., M, K] or [K], with one scale. w: [K, N], quantized per tensor or along axis 1;
    packed by `pack`, for repeated use; or per tensor [..., K, N], leading dimensions broadcasting as in
    `numpy.matmul`.
    bias: [N] reals; for a quantized result, rounded to int32 multiples of `x.scale * w.scale`.
    out: None for a float32 array, or parameters (uint8 or int8) for a QTensor.
    activation: "relu", "relu6" or bounds (low, high), either of which may be None.

    ValueError when shapes do not fit, or an activation exceeds what `w` was packed for.

    >>> x = QTensor(np.array([[1, 2]], np.uint8), scale=0.5)
    >>> matmul(x, QTensor(np.array([[3], [4]], np.int8), scale=0.1), bias=[1.0]).round(2)
    array([[1.55]], dtype=float32)
    """
    check_activation("x", x)
    zero_point = int(x.zero_point)
    if isinstance(w, PackedWeight):
        return quantized(_product(x.data, zero_point, w, epilogue_of(x, w, bias, out, activation)), out)
    if not isinstance(w, QTensor):
        raise TypeError(f"w: expected a QTensor or a PackedWeight, got {type(w).__name__}")
    if w.ndim < 2 or w.axis not in ((None, 1) if w.ndim == 2 else (None,)):
        expected = "[K, N] with one scale or axis 1, or [..., K, N] with one scale"
        raise ValueError(f"w: expected {expected}, got {w.shape}, axis {w.axis}")
    check_bytes("w", w.data)
    epilogue = make_epilogue(x.scale, w.scale, w.shape[-1], bias, out, activation)
    return quantized(multiply(x.data, zero_point, w.data, w.zero_point, epilogue), out)


def linear(
    x: QTensor,
    w: QTensor | PackedWeight,
    bias: npt.ArrayLike | None = None,
    out: QParams | None = None,
    activation: Activation = None,
) -> np.ndarray | QTensor:
    """Fully connected layer: `matmul` with a weight [N, K], quantized per tensor or along axis 0.

    A `PackedWeight` is that of the transposed weight: `pack(w.T)`.

    >>> linear(QTensor(np.array([1, 2], np.uint8), 1.0), QTensor(np.array([[3, 4]], np.int8), 1.0))
    array([11.], dtype=float32)
    """
    if isinstance(w, QTensor) and w.ndim != 2:
        raise ValueError(f"w: expected [N, K], got {w.shape}")
    return matmul(x, w.T if isinstance(w, QTensor) else w, bias, out, activation)


def matmul_dynamic(
    x: npt.ArrayLike, w: PackedWeight, bias: npt.ArrayLike | None = None, activation: Activation = None
) -> np.ndarray:
    """Dynamic quantization: `matmul(quantize(x, qmax=w.amax), w, bias, activation=activation)`, in one call.

    x: float32 [..., M, K] or [K], whose range at this call gives its scale and zero point, as in ONNX
    DynamicQuantizeLinear. w: weights packed by `pack`, once; with `amax=127` activations have 7 bits. bias and
    activation as in `matmul`. Returns float32 [..., M, N].

    ValueError when shapes do not fit, or x or bias has a number that is not finite.

    >>> w = pack(QTensor(np.array([[3], [4]], np.int8), scale=0.1))
    >>> matmul_dynamic([[0.5, 1.0]], w, bias=[1.0]).round(2)
    array([[1.55]], dtype=float32)
    """
    reals, offset = as_float32("x", x), None if bias is None else as_float32("bias", bias)
    if not isinstance(w, PackedWeight):
        raise TypeError(f"w: expected a PackedWeight, made once by pack(), got {type(w).__name__}")
    low, high = real_bounds(activation)
    if w.kind == "gemm" and reals.shape[-1:] == w.shape[:1] and (offset is None or offset.shape == (w.columns,)):
        rows = np.ascontiguousarray(reals).reshape(-1, w.shape[0])
        bounds = -np.inf if low is None else low, np.inf if high is None else high
        y = current_backend().matmul_dynamic(rows, w, None if offset is None else np.ascontiguousarray(offset), *bounds)
        if y is not None:
            return y.reshape(*reals.shape[:-1], w.columns)
    return matmul(quantize(reals, qmax=w.amax), w, bias, None, activation)  # type: ignore[return-value]  # no `out`


def matmul_integer(
    a: npt.ArrayLike,
    b: npt.ArrayLike | PackedWeight,
    a_zero_point: npt.ArrayLike = 0,
    b_zero_point: npt.ArrayLike | None = None,
) -> np.ndarray:
    """int32 `(a - a_zero_point) @ (b - b_zero_point)`, modulo 2**32, as ONNX MatMulInteger.

    a: uint8 or int8 [..., M, K] or [K]; a_zero_point: one, or one per row: [M] or [..., M, 1].
    b: uint8 or int8 [..., K, N]; b_zero_point: one (0 when None), or one per column: [N] or [..., 1, N].
    b may be a `PackedWeight`, which has its own zero point. Leading dimensions broadcast as in
    `numpy.matmul`.

    >>> matmul_integer(np.array([[255, 255]], np.uint8), np.array([[127], [127]], np.int8))
    array([[64770]], dtype=int32)
    """
    rows = check_bytes("a", a)
    none = type(a_zero_point) is int and a_zero_point == 0  # of a small product every call counts
    shared, each = 0 if none else one_zero_point(a_zero_point, rows.dtype), None
    if shared is None:
        each = check_zero_points("a_zero_point", a_zero_point, rows.dtype, (*rows.shape[:-1], 1), -2)
        shared, each = (int(each), None) if each.ndim == 0 else (0, each)
    if isinstance(b, PackedWeight):
        if b_zero_point is not None:
            raise unwanted_zero_point("b_zero_point", b_zero_point)
        acc = _product(rows, shared, b, ACCUMULATE)
        return acc if each is None else _less_rows(acc, each, b.colsum)
    columns, zeros = _columns(b, b_zero_point)
    acc = multiply(rows, shared, columns, zeros, ACCUMULATE)
    if each is None:
        return acc
    return _less_rows(acc, each, (columns - zeros.astype(np.int64)).sum(axis=-2, keepdims=True))


def _less_rows(acc: np.ndarray, zeros: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """The kernel took each row as it is; a zero point per row then costs one product with the column sums."""
    return (acc - zeros.astype(np.int64) * sums).astype(np.int32)


def _columns(b: npt.ArrayLike, zero_point: npt.ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """The matrices, and their zero points: one, or [..., 1, N] for the columns."""
    columns = check_bytes("b", b)
    if columns.ndim < 2:
        raise ValueError(f"b: expected [..., K, N], got shape {columns.shape}")
    shape = (*columns.shape[:-2], 1, columns.shape[-1])
    zeros = check_zero_points("b_zero_point", zero_point, columns.dtype, shape, -1)
    return columns, zeros if zeros.ndim == 0 else np.broadcast_to(zeros, shape)


def conv(
    x: QTensor,
    w: QTensor | PackedWeight,
    bias: npt.ArrayLike | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    auto_pad: str = "NOTSET",
    activation: Activation = None,
    out: QParams | None = None,
    layout: str = "NCHW",
) -> np.ndarray | QTensor:
    """Convolution of quantized images as in ONNX Conv, exact in the integers; padding is the real 0.

    x: uint8 or int8 [N, C, *spatial], one to three spatial dimensions, with one scale; with layout="NHWC",
    channels last, and so is the result. The memory order is free: images that lie channels last need no copy.
    w: [M, C / group, *kernel], quantized per tensor or along axis 0, or packed by `pack`. strides, dilations:
    one per spatial dimension, 1 by default; pads: all begins, then all ends, 0 by default; auto_pad as in ONNX.
    group: by default that of a packed `w`, else 1. bias ([M]), activation and out as in `matmul`.

    ValueError when shapes do not fit, or an activation exceeds what `w` was packed for.

    >>> x = QTensor(np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3), scale=1.0)
    >>> conv(x, QTensor(np.ones((1, 1, 2, 2), np.int8), scale=0.5), strides=(1, 1))[0, 0]
    array([[ 4.,  6.],
           [10., 12.]], dtype=float32)
    """
    check_activation("x", x)
    if not isinstance(w, QTensor | PackedWeight):
        raise TypeError(f"w: expected a QTensor or a PackedWeight, got {type(w).__name__}")
    images, packed, geometry = _placed(x.data, w, layout, group, strides, pads, dilations, auto_pad)
    epilogue = epilogue_of(x, packed, bias, out, activation)
    y = current_backend().conv(images, int(x.zero_point), packed, geometry, epilogue)
    return quantized(in_layout(y, layout), out)


def conv_integer(
    x: npt.ArrayLike,
    w: npt.ArrayLike | PackedWeight,
    x_zero_point: npt.ArrayLike = 0,
    w_zero_point: npt.ArrayLike | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    auto_pad: str = "NOTSET",
    layout: str = "NCHW",
) -> np.ndarray:
    """int32 convolution modulo 2**32, as ONNX ConvInteger; padding has the value `x_zero_point`.

    x: uint8 or int8 [N, C, *spatial]; x_zero_point: one. w: uint8 or int8 [M, C / group, *kernel];
    w_zero_point: one (0 when None), or one per filter: [M]. w may be a `PackedWeight`, which has its own zero
    point. The other arguments as in `conv`.

    >>> x = np.full((1, 1, 2, 2), 255, np.uint8)
    >>> conv_integer(x, np.full((1, 1, 2, 2), -128, np.int8))
    array([[[[-130560]]]], dtype=int32)
    """
    data = check_bytes("x", x)
    x_zero = one_zero_point(x_zero_point, data.dtype)
    if x_zero is None:
        x_zero = int(check_zero_points("x_zero_point", x_zero_point, data.dtype, (), -1))
    if isinstance(w, PackedWeight):
        if w_zero_point is not None:
            raise unwanted_zero_point("w_zero_point", w_zero_point)
        filters: QTensor | PackedWeight = w
    else:
        weights = check_bytes("w", w)
        w_zero = check_zero_points("w_zero_point", w_zero_point, weights.dtype, weights.shape[:1], -1)
        filters = unscaled(weights, np.broadcast_to(w_zero, weights.shape[:1]), 0)
    images, packed, geometry = _placed(data, filters, layout, group, strides, pads, dilations, auto_pad)
    acc = current_backend().conv(images, x_zero, packed, geometry, ACCUMULATE)
    return in_layout(acc, layout)


def _product(a: np.ndarray, zero_point: int, w: PackedWeight, epilogue: Epilogue) -> np.ndarray:
    """`(a - zero_point) @ w`, where `a` is [..., K] and `w` one matrix."""
    if w.kind != "gemm":
        raise ValueError(f"w: expected weights packed for a matrix product, got those of a convolution, {w.shape}")
    shape, backend = a.shape, current_backend()
    if len(shape) == 2 and shape[1] == w.shape[0]:
        return backend.matmul(a, zero_point, w, epilogue)
    if shape[-1:] != w.shape[:1]:
        raise wrong_shapes(shape, w.shape)
    rows = a.reshape(-1, w.shape[0])
    return backend.matmul(rows, zero_point, w, epilogue).reshape(*shape[:-1], w.columns)


def _placed(
    data: np.ndarray,
    w: QTensor | PackedWeight,
    layout: str,
    group: int | None,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
) -> tuple[np.ndarray, PackedWeight, ConvGeometry]:
    """A convolution as kernels take it: channels-last view of the images, packed filters, geometry; all checked."""
    packed_group = w.group if isinstance(w, PackedWeight) else None
    lists = strides, pads, dilations
    try:
        hash(lists)
    except TypeError:  # lists and arrays have no hash
        strides, pads, dilations = (tuple(each) if isinstance(each, list | np.ndarray) else each for each in lists)
    groups, geometry = _geometry(data.shape, w.shape, layout, group, packed_group, strides, pads, dilations, auto_pad)
    if isinstance(w, QTensor):
        w = pack(w, group=groups, dilations=geometry.dilations, prove=False)
    return data if layout == "NHWC" else borrow_nhwc(data), w, geometry


@lru_cache(maxsize=1024)  # to check the arguments takes longer than to convolve a small image
def _geometry(
    shape: tuple[int, ...],
    w_shape: tuple[int, ...],
    layout: str,
    group: int | None,
    packed_group: int | None,
    strides: Sequence[int] | None,
    pads: Sequence[int] | None,
    dilations: Sequence[int] | None,
    auto_pad: str,
) -> tuple[int, ConvGeometry]:
    """The number of groups, and where kernels of `w_shape` stand on images of `shape`."""
    check_choice("layout", layout, LAYOUTS)
    if not 3 <= len(shape) <= 5:
        raise ValueError(f"x: expected 3 to 5 dimensions (one to three of D, H and W), got {shape}")
    if len(w_shape) != len(shape):
        raise ValueError(f"w: expected [M, C / group, *kernel], {len(shape)} dimensions as x, got {w_shape}")
    groups = check_integer("group", group, 1, default=packed_group or 1)
    if packed_group not in (None, groups):
        raise ValueError(f"group: the weights were packed for {packed_group}, got {groups}")
    channels, sizes = (shape[-1], shape[1:-1]) if layout == "NHWC" else (shape[1], shape[2:])
    if channels != w_shape[1] * groups:
        expected = f"{w_shape[1] * groups} channels for w {w_shape} and group {groups}"
        raise ValueError(f"x: expected {expected}, got {channels}")
    placed = place(sizes, w_shape[2:], strides, pads, dilations, auto_pad)
    return groups, ConvGeometry(placed.strides, placed.pads, placed.dilations)
