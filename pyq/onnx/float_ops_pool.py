"""Pooling in float, on NCHW arrays of any number of spatial dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pyq.geometry import place
from pyq.onnx.float_ops_conv import padded, taps

Array = np.ndarray


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
    views = taps(padded(x, placement, -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min), placement)
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
    views = taps(padded(x, placement, 0), placement)
    y = next(views).copy()
    for view in views:
        y += view
    y /= placement.counts(x.shape[2:], bool(count_include_pad)).astype(x.dtype)
    return y


def global_average_pool(x: Array) -> Array:
    """Mean over all spatial axes, kept with length 1."""
    return x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)


def global_max_pool(x: Array) -> Array:
    """Largest element over all spatial axes, kept with length 1."""
    return x.max(axis=tuple(range(2, x.ndim)), keepdims=True)


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "MaxPool": max_pool,
}
