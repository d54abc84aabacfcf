"""Softmax and layer normalization of float32 arrays, whose bits do not depend on backend, CPU or threads.

Elements are summed in 16 lanes, and `exp` is a polynomial; docs/numerics.md has both.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np

from pyq.backends import current_backend
from pyq.layout import to_nchw, to_nhwc


def softmax_float32(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """`exp(x) / sum(exp(x))` along `axis` of a float32 array.

    Where x is NaN or +inf, or -inf all along the axis, the result is NaN. ValueError for an axis of no elements.

    >>> softmax_float32(np.array([0, 0], np.float32))
    array([0.5, 0.5], dtype=float32)
    """
    if x.shape[axis] == 0:
        raise ValueError(f"x: expected at least one element along axis {axis}, got shape {x.shape}")
    return over_rows(lambda rows: current_backend().softmax(rows), x, axis)


def layer_norm(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None, axis: int, epsilon: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Zero mean and unit variance over the axes from `axis` on, times `scale`, plus `bias`: ONNX LayerNormalization.

    All float32; scale and bias have the shape of those axes. Also returns mean and 1 / sqrt(variance + epsilon), with
    those axes of extent 1.

    >>> layer_norm(np.array([[1, 3]], np.float32), np.ones(2, np.float32), None, -1, 0.0)[0]
    array([[-1.,  1.]], dtype=float32)
    """
    axis %= x.ndim
    kept = x.shape[:axis]
    rows = np.ascontiguousarray(x).reshape(prod(kept), -1)
    flat = np.ascontiguousarray(scale).reshape(-1), None if bias is None else np.ascontiguousarray(bias).reshape(-1)
    y, mean, inverse = current_backend().layer_norm(rows, *flat, epsilon)
    statistics = (*kept, *[1] * (x.ndim - axis))
    return y.reshape(x.shape), mean.reshape(statistics), inverse.reshape(statistics)


def over_rows(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, axis: int) -> np.ndarray:
    """`function`, from a contiguous matrix to a float32 one of the same shape, of the rows along `axis` of `x`."""
    if not x.size:
        return np.empty(x.shape, np.float32)
    axis, extent = axis % x.ndim, x.shape[axis]
    if axis == x.ndim - 1 and x.flags.c_contiguous:  # what follows takes longer than a short row
        return function(x.reshape(-1, extent)).reshape(x.shape)
    moved = np.moveaxis(x, axis, -1)
    if moved.flags.c_contiguous:
        return np.moveaxis(function(moved.reshape(-1, extent)).reshape(moved.shape), -1, axis)
    rows = to_nhwc(np.ascontiguousarray(x).reshape(prod(x.shape[:axis]), extent, -1))
    return to_nchw(function(rows.reshape(-1, extent)).reshape(rows.shape)).reshape(x.shape)
