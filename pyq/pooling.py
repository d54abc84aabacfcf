"""Average and maximum pools of quantized images, with the attributes of the ONNX operators.

The maximum commutes with dequantization, so it is taken of the integers. An average is
`float32(float32(sum of (q - zero_point)) * scale) / float32(count)`, the sum exact, and is then quantized.
Both reduce one spatial dimension after the other, which is exact for integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np

from pyq.backends import current_backend
from pyq.checks import LAYOUTS, check_activation, check_choice, check_params
from pyq.geometry import Placement, place
from pyq.qparams import QParams
from pyq.tables import requantize
from pyq.tensor import QTensor


def max_pool(
    x: QTensor,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
    auto_pad: str = "NOTSET",
    out: QParams | None = None,
    layout: str = "NCHW",
) -> QTensor:
    """Maximum over each window, as in ONNX MaxPool; padding never is the maximum.

    x: uint8 or int8 [N, C, *spatial] (or channels last, with layout="NHWC"), with any number of spatial
    dimensions. The attributes are those of `pyq.geometry.place`. out: parameters of the result, by default
    those of `x`.

    >>> x = QTensor(np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4), 1.0)
    >>> max_pool(x, (2, 2), strides=(2, 2)).data[0, 0]
    array([[ 5,  7],
           [13, 15]], dtype=uint8)
    """
    images = _channels_first(x, layout)
    placement = place(images.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    _counts(images.shape[2:], placement, False)
    data = _reduced(np.maximum, images, placement, np.iinfo(x.dtype).min)
    pooled = QTensor(_restored(data, layout), x.scale, x.zero_point)
    return pooled if out is None else requantize(pooled, out)


def average_pool(
    x: QTensor,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = False,
    auto_pad: str = "NOTSET",
    out: QParams | None = None,
    layout: str = "NCHW",
) -> QTensor:
    """Mean over each window, as in ONNX AveragePool; arguments as in `max_pool`.

    count_include_pad: padding counts as elements of value 0, else it does not count.

    >>> x = QTensor(np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4), 1.0)
    >>> average_pool(x, (2, 2), strides=(2, 2), out=QParams(0.5)).dequantize()[0, 0]
    array([[ 2.5,  4.5],
           [10.5, 12.5]], dtype=float32)
    """
    images = _channels_first(x, layout)
    placement = place(images.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    counts = _counts(images.shape[2:], placement, count_include_pad)
    differences = np.subtract(images, x.zero_point, dtype=_wide_enough(prod(placement.kernel)))
    sums = _reduced(np.add, differences, placement, 0)
    return _mean(x, sums, counts, out, layout)


def global_max_pool(x: QTensor, out: QParams | None = None, layout: str = "NCHW") -> QTensor:
    """Maximum over all spatial dimensions, which stay with extent 1, as in ONNX GlobalMaxPool.

    >>> global_max_pool(QTensor(np.arange(16, dtype=np.uint8).reshape(1, 4, 2, 2), 1.0)).data.ravel()
    array([ 3,  7, 11, 15], dtype=uint8)
    """
    images = _channels_first(x, layout)
    data = images.max(axis=_spatial(images), keepdims=True)
    pooled = QTensor(_restored(data, layout), x.scale, x.zero_point)
    return pooled if out is None else requantize(pooled, out)


def global_average_pool(x: QTensor, out: QParams | None = None, layout: str = "NCHW") -> QTensor:
    """Mean over all spatial dimensions, which stay with extent 1, as in ONNX GlobalAveragePool.

    >>> global_average_pool(QTensor(np.arange(16, dtype=np.uint8).reshape(1, 4, 2, 2), 1.0)).data.ravel()
    array([ 2,  6, 10, 14], dtype=uint8)
    """
    images = _channels_first(x, layout)
    count = prod(images.shape[2:])
    sums = images.sum(axis=_spatial(images), keepdims=True, dtype=_wide_enough(count)).astype(np.int64)
    sums -= count * x.zero_point.astype(np.int64)
    return _mean(x, sums, np.asarray(count), out, layout)


def _mean(x: QTensor, sums: np.ndarray, counts: np.ndarray, out: QParams | None, layout: str) -> QTensor:
    params = x.params if out is None else check_params("out", out)
    reals = sums.astype(np.float32) * x.scale / counts.astype(np.float32)
    return QTensor(_restored(current_backend().quantize(reals, params), layout), params.scale, params.zero_point)


def _reduced(operation: np.ufunc, x: np.ndarray, placement: Placement, padding: int) -> np.ndarray:
    """`x` [N, C, *spatial] reduced over windows, dimension by dimension; keeps the memory order of `x`."""
    rank = len(placement.kernel)
    for i in range(rank):
        k, s, d = placement.kernel[i], placement.strides[i], placement.dilations[i]
        last = (placement.out[i] - 1) * s
        begin, end = placement.pads[i], last + (k - 1) * d + 1 - x.shape[2 + i] - placement.pads[i]
        x = _padded(x, 2 + i, begin, max(end, 0), padding)
        before = (slice(None),) * (2 + i)
        x = reduce(operation, [x[(*before, slice(t * d, t * d + last + 1, s))] for t in range(k)])
    return x


def _padded(x: np.ndarray, axis: int, begin: int, end: int, value: int) -> np.ndarray:
    if begin == end == 0:
        return x
    shape = (*x.shape[:axis], begin + x.shape[axis] + end, *x.shape[axis + 1 :])
    padded = np.full_like(x, value, shape=shape)  # in the memory order of x, unlike np.pad
    padded[(*(slice(None),) * axis, slice(begin, begin + x.shape[axis]))] = x
    return padded


def _wide_enough(count: int) -> type[np.signedinteger[Any]]:
    """A type that holds a sum of ``count`` differences of bytes: half the width is more than twice the speed."""
    return np.int32 if count < 2**22 else np.int64


def _counts(sizes: Sequence[int], placement: Placement, include_pad: bool) -> np.ndarray:
    if not placement.counts(sizes).all():
        raise ValueError(f"pads: a window lies wholly in the padding {placement.pads}")
    return placement.counts(sizes, include_pad)


def _channels_first(x: QTensor, layout: str) -> np.ndarray:
    check_activation("x", x)
    check_choice("layout", layout, LAYOUTS)
    if x.ndim < 3:
        raise ValueError(f"x: expected at least 3 dimensions, {layout} with any number of H and W, got {x.shape}")
    images = x.data if layout == "NCHW" else np.moveaxis(x.data, -1, 1)
    if 0 in images.shape[2:]:
        raise ValueError(f"x: expected spatial dimensions of at least 1, got {x.shape}")
    return images


def _restored(data: np.ndarray, layout: str) -> np.ndarray:
    return data if layout == "NCHW" else np.moveaxis(data, 1, -1)


def _spatial(images: np.ndarray) -> tuple[int, ...]:
    return tuple(range(2, images.ndim))
