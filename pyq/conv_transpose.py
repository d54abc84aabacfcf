"""The public transposed convolutions, of quantized tensors and of raw integers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pyq.checks import LAYOUTS, check_activation, check_bytes, check_choice, check_integer, check_integers
from pyq.geometry import Placement, place_transposed
from pyq.layout import borrow_nhwc
from pyq.products import (
    ACCUMULATE,
    Activation,
    check_zero_points,
    epilogue_of,
    in_layout,
    quantized,
    unscaled,
    unwanted_zero_point,
)
from pyq.qparams import QParams
from pyq.tensor import QTensor
from pyq.transposed import PackedTransposed, pack_transposed, run_phases


def conv_transpose(
    x: QTensor,
    w: QTensor | PackedTransposed,
    bias: npt.ArrayLike | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    auto_pad: str = "NOTSET",
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    activation: Activation = None,
    out: QParams | None = None,
    layout: str = "NCHW",
) -> np.ndarray | QTensor:
    """Transposed convolution of quantized images as in ONNX ConvTranspose, exact in the integers.

    x: uint8 or int8 [N, C, *spatial], one to three spatial dimensions, with one scale. w: [C, M / group, *kernel],
    quantized per tensor or along axis 1, or packed by `pack_transposed`; then strides, dilations and group are those
    it was packed for. Along each dimension the output has (size - 1) * stride + (kernel - 1) * dilation + 1 elements,
    less the pads, plus output_padding; output_shape (spatial) or an auto_pad "SAME_..." gives its sizes instead, see
    `pyq.geometry.place_transposed`. The other arguments as in `conv`.

    ValueError when shapes do not fit, or an activation exceeds what `w` was packed for.

    >>> x = QTensor(np.array([[[[1, 2], [3, 4]]]], np.uint8), scale=1.0)
    >>> conv_transpose(x, QTensor(np.ones((1, 1, 2, 2), np.int8), scale=0.5), strides=(1, 2))[0, 0]
    array([[0.5, 0.5, 1. , 1. ],
           [2. , 2. , 3. , 3. ],
           [1.5, 1.5, 2. , 2. ]], dtype=float32)
    """
    check_activation("x", x)
    if not isinstance(w, QTensor | PackedTransposed):
        raise TypeError(f"w: expected a QTensor or a PackedTransposed, got {type(w).__name__}")
    images, packed = _packed(x.data, w, layout, group, strides, dilations)
    placement = _placed(images, packed, pads, auto_pad, output_padding, output_shape)
    epilogue = epilogue_of(x, packed, bias, out, activation)
    y = run_phases(images, int(x.zero_point), packed, placement, epilogue)
    return quantized(in_layout(y, layout), out)


def conv_transpose_integer(
    x: npt.ArrayLike,
    w: npt.ArrayLike | PackedTransposed,
    x_zero_point: npt.ArrayLike = 0,
    w_zero_point: npt.ArrayLike | None = None,
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int | None = None,
    auto_pad: str = "NOTSET",
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    layout: str = "NCHW",
) -> np.ndarray:
    """int32 transposed convolution of `x - x_zero_point` and `w - w_zero_point`, modulo 2**32.

    x: uint8 or int8 [N, C, *spatial]; x_zero_point: one. w: uint8 or int8 [C, M / group, *kernel]; w_zero_point: one
    (0 when None), or [M / group], those of every group. w may be a `PackedTransposed`, which has its own zero points.
    The other arguments as in `conv_transpose`.

    >>> conv_transpose_integer(np.full((1, 2, 1), 255, np.uint8), np.full((2, 1, 2), -128, np.int8), strides=(3,))
    array([[[-65280, -65280]]], dtype=int32)
    """
    data = check_bytes("x", x)
    x_zero = check_zero_points("x_zero_point", x_zero_point, data.dtype, (), -1)
    if isinstance(w, PackedTransposed):
        if w_zero_point is not None:
            raise unwanted_zero_point("w_zero_point", w_zero_point)
        weights: QTensor | PackedTransposed = w
    else:
        integers = check_bytes("w", w)
        columns = integers.shape[1:2]
        w_zero = check_zero_points("w_zero_point", w_zero_point, integers.dtype, columns, -1)
        weights = unscaled(integers, np.broadcast_to(w_zero, columns), 1)
    images, packed = _packed(data, weights, layout, group, strides, dilations)
    placement = _placed(images, packed, pads, auto_pad, output_padding, output_shape)
    return in_layout(run_phases(images, int(x_zero), packed, placement, ACCUMULATE), layout)


def _packed(
    x: np.ndarray,
    w: QTensor | PackedTransposed,
    layout: str,
    group: int | None,
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
) -> tuple[np.ndarray, PackedTransposed]:
    """The images channels last, and the weights packed; all checked."""
    check_choice("layout", layout, LAYOUTS)
    if not 3 <= x.ndim <= 5:
        raise ValueError(f"x: expected 3 to 5 dimensions (one to three of D, H and W), got {x.shape}")
    if len(w.shape) != x.ndim:
        raise ValueError(f"w: expected [C, M / group, *kernel], {x.ndim} dimensions as x, got {w.shape}")
    images = x if layout == "NHWC" else borrow_nhwc(x)
    if images.shape[-1] != w.shape[0]:
        raise ValueError(f"x: expected {w.shape[0]} channels for w {w.shape}, got {images.shape[-1]}")
    if isinstance(w, QTensor):
        group = check_integer("group", group, 1, default=1)
        return images, pack_transposed(w, strides=strides, dilations=dilations, group=group, prove=False)
    for name, given, own in (("strides", strides, w.strides), ("dilations", dilations, w.dilations)):
        if given is not None and check_integers(name, given, len(own), 1, 1) != own:
            raise ValueError(f"{name}: the weights were packed for {own}, got {given!r}")
    if group not in (None, w.group):
        raise ValueError(f"group: the weights were packed for {w.group}, got {group}")
    return images, w


def _placed(
    images: np.ndarray,
    w: PackedTransposed,
    pads: Sequence[int] | None,
    auto_pad: str,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> Placement:
    """Where the kernel of `w` is placed on the images."""
    attributes = (tuple(v) if isinstance(v, list | np.ndarray) else v for v in (pads, output_padding, output_shape))
    return _placement(images.shape[1:-1], w.shape[2:], w.strides, w.dilations, auto_pad, *attributes)


@lru_cache(maxsize=1024)  # as in pyq.ops: to check the attributes takes longer than to convolve a small image
def _placement(
    sizes: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    auto_pad: str,
    pads: Sequence[int] | None,
    output_padding: Sequence[int] | None,
    output_shape: Sequence[int] | None,
) -> Placement:
    return place_transposed(sizes, kernel, strides, pads, dilations, auto_pad, output_padding, output_shape)
