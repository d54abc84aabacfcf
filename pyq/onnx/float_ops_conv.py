"""Convolution in float, on NCHW arrays of any number of spatial dimensions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pyq.geometry import Placement, place, place_transposed
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

    1x1 kernels are one matrix product, depthwise ones a product with band matrices, all others im2col and BLAS.
    """
    if x.ndim != w.ndim or x.shape[1] != w.shape[1] * group:
        raise ValueError(f"expected an input [N, {w.shape[1] * group}, ...] of {w.ndim} dimensions, got {x.shape}")
    placement = place(x.shape[2:], w.shape[2:], strides, pads, dilations, auto_pad)
    image = padded(x, placement, 0)
    if group == x.shape[1] == w.shape[0] and group > 1:
        y = _depthwise(image, w, placement)
    elif math.prod(placement.kernel) == 1 and group == 1:
        y = _pointwise(next(taps(image, placement)), w)
    else:
        y = _by_slabs(image, w, group, placement)
    if b is not None:
        y += b.reshape(-1, *[1] * len(placement.out))
    return y


def padded(x: Array, placement: Placement, value: Any) -> Array:
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
    image = np.full((*x.shape[:2], *sizes), value, x.dtype)
    image[(slice(None), slice(None), *inside)] = x  # Python 3.10 has no star in an index
    return image


def taps(image: Array, placement: Placement) -> Iterator[Array]:
    """For each kernel position in row-major order: the elements of a padded image it meets, a view [N, C, *out]."""
    for position in np.ndindex(*placement.kernel):
        along = zip(position, placement.dilations, placement.strides, placement.out, strict=True)
        places = tuple(slice(k * d, k * d + s * (n - 1) + 1, s) for k, d, s, n in along)
        yield image[(slice(None), slice(None), *places)]


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
        end = (stop - 1) * stride + (placement.kernel[0] - 1) * dilation + 1
        slab = x[image : image + 1, :, start * stride : end]
        part = conv_float(slab, w, None, placement.strides, None, placement.dilations, group)
        y[image : image + 1, :, start:stop] = part
    return y


def _depthwise(x: Array, w: Array, placement: Placement) -> Array:
    """Depthwise convolution by BLAS: per channel, BAND neighbouring outputs are a row of inputs times a band matrix.

    Most of that matrix is zeros, but a product with it is still faster than NumPy's multiply and add tap by tap.
    """
    (n, c, *_), (*rest, width) = x.shape, placement.out
    *kernel, last = placement.kernel
    *strides, stride = placement.strides
    *dilations, dilation = placement.dilations
    bands = -(-width // BAND)
    reach = (last - 1) * dilation + 1
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


def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """ONNX ConvTranspose: x [N, C, *size], w [C, M / group, *kernel], b [M] -> [N, M, *out].

    One matrix product gives what each input element adds to the outputs under the kernel; these are then added up.
    """
    (n, c, *size), kernel = x.shape, w.shape[2:]
    if x.ndim != w.ndim or c != len(w):
        raise ValueError(f"expected an input [N, {len(w)}, ...] of {w.ndim} dimensions, got {x.shape}")
    placed = place_transposed(size, kernel, strides, pads, dilations, auto_pad, output_padding, output_shape)
    begins, rank = placed.pads[: len(kernel)], len(kernel)
    weight = w.reshape(group, c // group, -1).transpose(0, 2, 1)
    parts = (weight @ x.reshape(n, group, c // group, -1)).reshape(n, group * w.shape[1], *kernel, *size)
    along = list(zip(size, placed.strides, placed.dilations, strict=True))
    reached = ((m - 1) * s + (k - 1) * d + 1 for k, (m, s, d) in zip(kernel, along, strict=True))
    whole = map(max, reached, (begin + n for begin, n in zip(begins, placed.out, strict=True)))
    full = np.zeros((*parts.shape[:2], *whole), parts.dtype)
    for position in np.ndindex(*kernel):
        places = (slice(i * d, i * d + s * (m - 1) + 1, s) for i, (m, s, d) in zip(position, along, strict=True))
        full[(slice(None), slice(None), *places)] += parts[(slice(None), slice(None), *position)]
    kept = (slice(begin, begin + n) for begin, n in zip(begins, placed.out, strict=True))
    y = full[(slice(None), slice(None), *kept)]
    return y if b is None else y + b.reshape(-1, *[1] * rank)


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


OPERATORS: dict[str, Callable[..., Any]] = {
    "BatchNormalization": batch_normalization,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
}
