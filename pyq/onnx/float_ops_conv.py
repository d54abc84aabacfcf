"""Convolution and pooling in float, on NCHW arrays of any number of spatial dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pyq.geometry import Placement, place
from pyq.reference import conv_float, windows

Array = np.ndarray

COLUMN_BYTES = 1 << 19
"""A convolution is made in parts whose im2col matrix has about this size, so that it stays in the cache."""

BAND = 8
"""Outputs that a depthwise convolution computes by one row of a matrix product; see `_depthwise`."""


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """ONNX Conv: x [N, C, *size], w [M, C / group, *kernel], b [M] -> [N, M, *out].

    1x1 kernels are one matrix product, depthwise ones multiply and add tap by tap, all others im2col and BLAS.
    """
    if x.ndim != w.ndim or x.shape[1] != w.shape[1] * group:
        raise ValueError(f"expected an input [N, {w.shape[1] * group}, ...] of {w.ndim} dimensions, got {x.shape}")
    placement = place(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
    padded = _padded(x, placement, 0)
    if group == x.shape[1] == w.shape[0] and group > 1:
        y = _depthwise(padded, w, placement)
    elif math.prod(placement.kernel) == 1 and group == 1:
        y = _pointwise(next(_taps(padded, placement)), w)
    else:
        y = _by_slabs(padded, w, group, placement)
    if b is not None:
        y += b.reshape(-1, *[1] * len(placement.out))
    return y


def _padded(x: Array, placement: Placement, value: Any) -> Array:
    """`x` with `value` around it, as far as the windows reach; `x` itself when they do not reach beyond it."""
    inside: list[slice] = []
    sizes: list[int] = []
    for i, (n, out) in enumerate(zip(x.shape[2:], placement.out, strict=True)):
        begin = placement.pads[i]
        end = (out - 1) * placement.strides[i] + (placement.kernel[i] - 1) * placement.dilations[i] + 1
        inside.append(slice(begin, begin + n))
        sizes.append(max(begin + n, end))
    if tuple(sizes) == x.shape[2:]:
        return x
    padded = np.full((*x.shape[:2], *sizes), value, x.dtype)
    padded[(slice(None), slice(None), *inside)] = x  # Python 3.10 has no star in an index
    return padded


def _taps(padded: Array, placement: Placement) -> Iterator[Array]:
    """For each kernel position in row-major order: the elements it meets, a view [N, C, *out]."""
    for position in np.ndindex(*placement.kernel):
        along = zip(position, placement.dilations, placement.strides, placement.out, strict=True)
        places = tuple(slice(k * d, k * d + s * (n - 1) + 1, s) for k, d, s, n in along)
        yield padded[(slice(None), slice(None), *places)]


def _pointwise(x: Array, w: Array) -> Array:
    n, c, *size = x.shape
    return np.matmul(w.reshape(-1, c), x.reshape(n, c, -1)).reshape(n, -1, *size)


def _by_slabs(x: Array, w: Array, group: int, placement: Placement) -> Array:
    """`conv_float` on as many output rows at a time as keep its im2col matrix in the cache."""
    y = np.empty((len(x), len(w), *placement.out), np.result_type(x, w))
    (height, *others), stride, dilation = placement.out, placement.strides[0], placement.dilations[0]
    row_bytes = x.shape[1] * math.prod(placement.kernel) * math.prod(others) * x.itemsize
    rows = max(1, COLUMN_BYTES // row_bytes)
    for image, start in itertools.product(range(len(x)), range(0, height, rows)):
        stop = min(start + rows, height)
        slab = x[
            image : image + 1,
            :,
            start * stride : (stop - 1) * stride + (placement.kernel[0] - 1) * dilation + 1,
        ]
        y[image : image + 1, :, start:stop] = conv_float(
            slab, w, None, placement.strides, None, placement.dilations, group
        )
    return y


def _depthwise(x: Array, w: Array, placement: Placement) -> Array:
    """Depthwise convolution by BLAS: per channel, BAND neighbouring outputs are a row of inputs times a band matrix.

    Most of that matrix is zeros, but a product with it is still faster than NumPy's multiply and add tap by tap.
    """
    (n, c, *_), (*rest, width) = x.shape, placement.out
    *kernel, taps = placement.kernel
    *strides, stride = placement.strides
    *dilations, dilation = placement.dilations
    bands = -(-width // BAND)
    reach = (taps - 1) * dilation + 1
    span = (BAND - 1) * stride + reach
    missing = (bands - 1) * BAND * stride + span - x.shape[-1]
    if missing > 0:
        x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    matrix = np.zeros((c, *kernel, span, BAND), w.dtype)
    for i in range(BAND):
        matrix[..., i * stride : i * stride + reach : dilation, i] = w[:, 0]
    matrix = matrix.reshape(c, -1, BAND)
    view = windows(x, (*kernel, span), (*strides, BAND * stride), (*dilations, 1))
    rank = len(placement.out)
    view = view.transpose(0, 1, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))  # [N, C, *out, *kernel]
    y = np.empty((n, c, *rest, width), np.result_type(x, w))
    channels = max(1, COLUMN_BYTES // (math.prod(view.shape[2:]) * x.itemsize))
    for image, start in itertools.product(range(n), range(0, c, channels)):
        block = slice(start, start + channels)
        rows = view[image, block].reshape(-1, math.prod(rest) * bands, matrix.shape[1])
        product = (rows @ matrix[block]).reshape(-1, *rest, bands * BAND)
        y[image, block] = product[..., :width]
    return y


def batch_normalization(
    x: Array,
    scale: Array,
    bias: Array,
    mean: Array,
    variance: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
) -> Array:
    """Inference form of batch normalization: one multiply and one add per channel (axis 1)."""
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    channel = (-1, *[1] * (x.ndim - 2))
    return x * factor.reshape(channel) + (bias - mean * factor).reshape(channel)


def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Largest element of each window; padding never wins."""
    placement = place(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, bool(ceil_mode))
    views = _taps(_padded(x, placement, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min), placement)
    y = next(views).copy()
    for view in views:
        np.maximum(y, view, out=y)
    return y


def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Mean of each window, over the elements of `x` alone or, if `count_include_pad`, over its padding too."""
    placement = place(x.shape[2:], kernel_shape, strides, pads, dilations, auto_pad, bool(ceil_mode))
    views = _taps(_padded(x, placement, 0), placement)
    y = next(views).copy()
    for view in views:
        y += view
    y /= _counts(x.shape[2:], placement, bool(count_include_pad)).astype(x.dtype)
    return y


def _counts(size: Sequence[int], placement: Placement, include_pad: bool) -> Array:
    """How many elements each window holds, [*out]: those of the input, or also those of its padding."""
    total, rank = np.ones((), np.int64), len(size)
    for i, n in enumerate(size):
        before, after = placement.pads[i], placement.pads[i + rank]
        places = np.arange(placement.out[i])[:, None] * placement.strides[i] - before
        places = places + np.arange(placement.kernel[i]) * placement.dilations[i]
        held = places < n + after if include_pad else (places >= 0) & (places < n)
        total = total[..., None] * held.sum(axis=1)
    return total


def global_average_pool(x: Array) -> Array:
    """Mean over all spatial axes, kept with length 1."""
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)


def global_max_pool(x: Array) -> Array:
    """Largest element over all spatial axes, kept with length 1."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
