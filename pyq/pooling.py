"""Average and maximum pools of quantized images, with the attributes of the ONNX operators."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pyq.backends import current_backend
from pyq.checks import LAYOUTS, check_activation, check_choice, check_params
from pyq.geometry import Placement, channels_first, place
from pyq.layout import borrow_nhwc
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
    images = _images(x, layout)
    placement = place(images.shape[1:-1], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return _maximum(x, images, placement, out, layout)


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
    images = _images(x, layout)
    placement = place(images.shape[1:-1], kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return _mean(x, images, placement, count_include_pad, out, layout)


def global_max_pool(x: QTensor, out: QParams | None = None, layout: str = "NCHW") -> QTensor:
    """Maximum over all spatial dimensions, which stay with extent 1, as in ONNX GlobalMaxPool.

    >>> global_max_pool(QTensor(np.arange(16, dtype=np.uint8).reshape(1, 4, 2, 2), 1.0)).data.ravel()
    array([ 3,  7, 11, 15], dtype=uint8)
    """
    images = _images(x, layout)
    return _maximum(x, images, place(images.shape[1:-1], images.shape[1:-1]), out, layout)


def global_average_pool(x: QTensor, out: QParams | None = None, layout: str = "NCHW") -> QTensor:
    """Mean over all spatial dimensions, which stay with extent 1, as in ONNX GlobalAveragePool.

    >>> global_average_pool(QTensor(np.arange(16, dtype=np.uint8).reshape(1, 4, 2, 2), 1.0)).data.ravel()
    array([ 2,  6, 10, 14], dtype=uint8)
    """
    images = _images(x, layout)
    return _mean(x, images, place(images.shape[1:-1], images.shape[1:-1]), False, out, layout)


def _maximum(x: QTensor, images: np.ndarray, placement: Placement, out: QParams | None, layout: str) -> QTensor:
    _check_windows(images, placement)
    data = current_backend().max_pool(images, placement)
    pooled = QTensor.of(_restored(data, layout), x.params)
    return pooled if out is None else requantize(pooled, out)


def _mean(
    x: QTensor, images: np.ndarray, placement: Placement, include_pad: bool, out: QParams | None, layout: str
) -> QTensor:
    _check_windows(images, placement)
    params = x.params if out is None else check_params("out", out)
    data = current_backend().average_pool(images, x.params, placement, include_pad, params)
    return QTensor.of(_restored(data, layout), params)


def _check_windows(images: np.ndarray, placement: Placement) -> None:
    if not _all_inside(placement, images.shape[1:-1]):
        raise ValueError(f"pads: a window lies wholly in the padding {placement.pads}")


@lru_cache(maxsize=256)
def _all_inside(placement: Placement, sizes: tuple[int, ...]) -> bool:
    """Whether each window has an element of the image."""
    return bool(placement.counts(sizes).all())


def _images(x: QTensor, layout: str) -> np.ndarray:
    """The images as backends take them: contiguous [N, *spatial, C]."""
    check_activation("x", x)
    check_choice("layout", layout, LAYOUTS)
    if x.ndim < 3:
        raise ValueError(f"x: expected at least 3 dimensions, {layout} with any number of H and W, got {x.shape}")
    if 0 in (x.shape[2:] if layout == "NCHW" else x.shape[1:-1]):
        raise ValueError(f"x: expected spatial dimensions of at least 1, got {x.shape}")
    return borrow_nhwc(x.data) if layout == "NCHW" else np.ascontiguousarray(x.data)


def _restored(data: np.ndarray, layout: str) -> np.ndarray:
    return data if layout == "NHWC" else channels_first(data)
