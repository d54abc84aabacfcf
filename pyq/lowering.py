"""What the C and the Numba kernels have in common about their arguments.

Where a convolution reads its images, an epilogue with everything folded into its bias, and the order in which
element-wise kernels walk arrays. Kernels see activations in [0, 255] only: an int8 value is shifted up by half of
``amax + 1`` and its zero point with it, which no integer result can tell. The activation's zero point then costs
nothing in the loop: ``sum((a - za) * w) = sum(a * w) - za * colsum(w)``, and that goes into the bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyq.backends import ConvGeometry, Epilogue, Residual
from pyq.packing import PackedWeight
from pyq.panels import NR
from pyq.qparams import LIMITS, QParams

SLACK = 64  # elements behind a buffer that a kernel may read


def activation_shift(dtype: np.dtype[Any], amax: int) -> int:
    """What is added to activations of ``dtype`` to make them bytes in [0, amax]."""
    return 0 if dtype == np.uint8 else (amax + 1) // 2


def above_amax(x: NDArray[Any], w: PackedWeight) -> ValueError:
    """The error for activations for which the proofs of the packing do not hold."""
    shift = activation_shift(x.dtype, w.amax)
    allowed = f"{-shift} to {w.amax - shift}"
    return ValueError(
        f"x: got values from {x.min()} to {x.max()}, but the weights were packed for {allowed} (amax={w.amax})"
    )


def reads_exactly(w: PackedWeight, channels: int) -> bool:
    """Whether the kernels read nothing behind the images: whole quads, or whole panels of 16 channels."""
    return channels % NR == 0 if w.kind == "depthwise" else w.run % 4 == 0


def _three(values: tuple[int, ...], missing: int) -> tuple[int, int, int]:
    first, second, third = (missing, missing, missing, *values)[-3:]
    return first, second, third


class ConvPlace(NamedTuple):
    """A convolution in three spatial dimensions; those that the images lack have size 1.

    size, begin, end (pads), out_size, stride and dilation per dimension; offsets: int32, of each step from the first
    pixel under the kernel.
    """

    size: tuple[int, int, int]
    begin: tuple[int, int, int]
    end: tuple[int, int, int]
    out_size: tuple[int, int, int]
    stride: tuple[int, int, int]
    dilation: tuple[int, int, int]
    offsets: NDArray[np.int32]


def place_conv(shape: tuple[int, ...], w: PackedWeight, geometry: ConvGeometry, zero: int) -> ConvPlace:
    """Where the kernels of ``w`` stand on images of ``shape`` ``[N, *spatial, C]``, padded with the value ``zero``.

    Raises ValueError for padding above ``w.amax``, and for dilations that ``w`` was not packed for.
    """
    if w.kind == "conv" and w.runs_per_row == 1 and w.kernel_shape[2] > 1 and geometry.dilations[-1] != 1:
        raise ValueError(
            f"dilations: got {geometry.dilations}, but the weights were packed for 1; pack them with dilations="
        )
    if any(geometry.pads) and not 0 <= zero <= w.amax:
        raise ValueError(f"x_zero_point: weights packed for amax={w.amax} do not allow it as padding")
    rank = len(shape) - 2
    size = _three(shape[1:-1], 1)
    begin, end = _three(geometry.pads[:rank], 0), _three(geometry.pads[rank:], 0)
    dilations, stride = _three(geometry.dilations, 1), _three(geometry.strides, 1)
    out = _three(geometry.output_size(shape[1:-1], w.kernel_shape[3 - rank :]), 1)
    line = (begin[2] + size[2] + end[2]) * shape[-1]
    plane = (begin[1] + size[1] + end[1]) * line
    offsets = w.offsets((plane * dilations[0], line * dilations[1], shape[-1] * dilations[2]))
    return ConvPlace(size, begin, end, out, stride, dilations, offsets)


def _per_column(values: NDArray[Any] | None, columns: int, dtype: type) -> NDArray[Any] | None:
    if values is None:
        return None
    array: NDArray[Any] = np.ascontiguousarray(values, dtype)
    return array if array.shape == (columns,) else np.full(columns, array)


class LoweredSum(NamedTuple):
    """A residual as the kernels take it: ``pyq_sum`` in csrc/pyq.h."""

    low: int
    high: int
    product_scale: float
    residual_scale: float
    residual_zero_point: int
    residual_is_signed: bool
    scale: float


def lower_residual(residual: Residual) -> LoweredSum:
    """The zero point of the product cancels out: only its bounds are counted from there."""
    product, operand = residual.product, residual.operand
    zero_point = int(product.zero_point)
    return LoweredSum(
        product.qmin - zero_point,
        product.qmax - zero_point,
        float(product.scale),
        float(operand.scale),
        int(operand.zero_point),
        operand.dtype == np.int8,
        residual.scale,
    )


class LoweredEpilogue(NamedTuple):
    """An epilogue as the kernels take it: contiguous arrays per column, finite float bounds minus the zero point."""

    bias: NDArray[np.int32] | None
    multiplier: NDArray[np.float32] | None
    offset: NDArray[np.float32] | None
    low: float
    high: float
    sum: LoweredSum | None = None


def lower_epilogue(epilogue: Epilogue, columns: int, correction: NDArray[np.int32] | None = None) -> LoweredEpilogue:
    """Broadcast per-column arrays and add ``correction`` (``-za * colsum``, int32 that wraps) to the bias."""
    bias = _per_column(epilogue.bias, columns, np.int32)
    if correction is not None:
        bias = correction if bias is None else bias + correction
    low, high = epilogue.low, epilogue.high
    if epilogue.dtype.itemsize == 1:
        least, most = LIMITS[epilogue.dtype]
        low = (least if low is None else low) - epilogue.zero_point
        high = (most if high is None else high) - epilogue.zero_point
    return LoweredEpilogue(
        bias,
        _per_column(epilogue.multiplier, columns, np.float32),
        _per_column(epilogue.offset, columns, np.float32),
        -np.inf if low is None else low,
        np.inf if high is None else high,
        None if epilogue.residual is None else lower_residual(epilogue.residual),
    )


def zero_point_correction(w: PackedWeight, zero_point: int) -> NDArray[np.int32] | None:
    """``-zero_point * colsum``, int32 modulo 2^32; None when there is nothing to correct."""
    return w.colsum * np.int32(-zero_point) if zero_point else None


def memory_order(x: NDArray[Any]) -> tuple[int, ...]:
    """The axes of ``x`` from the largest stride to the smallest: in this order it is walked through memory."""
    return _by_stride(x.strides)


def _by_stride(strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(strides)), key=lambda axis: -abs(strides[axis])))


class Walk(NamedTuple):
    """The order in which an element-wise kernel visits an array, so that NHWC input gives NHWC output.

    ``shape`` is in that order; ``order[i]`` is the axis of the logical array that comes i-th, ``place[axis]`` the
    reverse.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    place: tuple[int, ...]

    @staticmethod
    def along(x: NDArray[Any]) -> Walk:
        """The walk that follows the memory of ``x``."""
        return _walk(x.shape, x.strides)

    def flat(self, x: NDArray[Any]) -> NDArray[Any]:
        """``x`` as one run of elements; copied only when its memory has gaps."""
        return np.ascontiguousarray(x.transpose(self.order)).reshape(-1)

    def target(self, out: NDArray[Any] | None, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Flat memory for the result: that of ``out`` when it lies in this order, else new."""
        if out is not None and out.transpose(self.order).flags.c_contiguous:
            return out.transpose(self.order).reshape(-1)
        return np.empty(math.prod(self.shape), dtype)

    def result(self, target: NDArray[Any], out: NDArray[Any] | None) -> NDArray[Any]:
        """The array in logical order over ``target``; copied into ``out`` when that lies in another order."""
        logical = target.reshape(self.shape).transpose(self.place)
        if out is None:
            return logical
        if not np.may_share_memory(out, target):
            out[...] = logical
        return out

    def run(self, params: QParams) -> int:
        """How many elements follow each other that share one scale and zero point."""
        position = -1 if params.axis is None else self.order.index(params.axis % len(self.order))
        return math.prod(self.shape[position + 1 :])

    def slices(self, params: QParams) -> Iterator[tuple[slice, float, int]]:
        """Runs of elements that share one scale and zero point, with both: the whole, when quantized per tensor."""
        if params.axis is None:
            yield slice(0, math.prod(self.shape)), *params.numbers[:2]
            return
        position, run = self.order.index(params.axis % len(self.order)), self.run(params)
        for index in range(math.prod(self.shape[: position + 1])):
            channel = index % self.shape[position]
            part = slice(index * run, (index + 1) * run)
            yield part, float(params.scale[channel]), int(params.zero_point[channel])


@lru_cache(maxsize=1024)  # it takes as long as the kernel on some 1000 elements
def _walk(shape: tuple[int, ...], strides: tuple[int, ...]) -> Walk:
    """The walk through elements of `shape` in the order of their strides."""
    order = _by_stride(strides)
    return Walk(tuple(shape[axis] for axis in order), order, tuple(sorted(range(len(order)), key=order.__getitem__)))


class BinaryLines(NamedTuple):
    """An operand of element-wise arithmetic, with its axes in the order of the walk and merged where possible.

    ``shape`` and the byte strides are those of both operands together, the last stride 0 or 1; ``array`` is the
    operand itself, whose memory they describe.
    """

    array: NDArray[Any]
    params: QParams
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def lower_binary(
    op: str, a: NDArray[Any], a_params: QParams, b: NDArray[Any], b_params: QParams
) -> tuple[Walk, BinaryLines, BinaryLines]:
    """Broadcast, and follow the memory of the operand that fills the result. 0 / 0 is a ValueError."""
    if op == "div" and ((a == a_params.zero_point) & (b == b_params.zero_point)).any():
        raise ValueError("a, b: 0 / 0 is NaN, which has no quantized value")
    walk, dims, a_strides, b_strides = _common_walk(a.shape, a.strides, b.shape, b.strides)
    if dims is None:
        wide = (np.broadcast_to(x, np.broadcast_shapes(a.shape, b.shape)) for x in (a, b))
        a, b = (_unit_inner(x.transpose(walk.order)) for x in wide)
        dims, a_strides, b_strides = _merged_dimensions(walk.shape, a.strides, b.strides)
    return walk, BinaryLines(a, a_params, dims, a_strides), BinaryLines(b, b_params, dims, b_strides)


_Integers: TypeAlias = tuple[int, ...]


@lru_cache(maxsize=1024)  # it takes longer than a small sum
def _common_walk(
    a_shape: _Integers, a_strides: _Integers, b_shape: _Integers, b_strides: _Integers
) -> tuple[Walk, _Integers | None, _Integers, _Integers]:
    """The walk of two operands, and `_merged_dimensions` in its order; None where one has to be copied before."""
    shape = np.broadcast_shapes(a_shape, b_shape)
    filling = next((each for own, each in ((a_shape, a_strides), (b_shape, b_strides)) if own == shape), None)
    walk = _walk(shape, tuple(range(len(shape), 0, -1)) if filling is None else filling)
    whole = [_broadcast_strides(a_shape, a_strides, shape), _broadcast_strides(b_shape, b_strides, shape)]
    first, second = (tuple(strides[axis] for axis in walk.order) for strides in whole)
    if all(strides[-1:] in ((), (0,), (1,)) for strides in (first, second)):
        return walk, *_merged_dimensions(walk.shape, first, second)
    return walk, None, first, second


def _broadcast_strides(own: _Integers, strides: _Integers, shape: _Integers) -> _Integers:
    new = len(shape) - len(own)
    kept = (s if n == size else 0 for n, s, size in zip(own, strides, shape[new:], strict=True))
    return (*(0,) * new, *kept)


def _unit_inner(x: NDArray[Any]) -> NDArray[Any]:
    """``x`` itself when it is 0-d or its last stride is 0 or 1 byte, else a contiguous copy."""
    return x if not x.ndim or x.strides[-1] in (0, 1) else np.ascontiguousarray(x)


def _merged_dimensions(
    shape: _Integers, a_strides: _Integers, b_strides: _Integers
) -> tuple[_Integers, _Integers, _Integers]:
    """Shape and byte strides of two operands, every pair of axes merged that both cross in one even stride."""
    axes = [(1, 0, 0)]
    for size, a_stride, b_stride in zip(shape, a_strides, b_strides, strict=True):
        last_size, last_a, last_b = axes[-1]
        if last_size == 1:
            axes[-1] = (size, a_stride, b_stride)
        elif (last_a, last_b) == (a_stride * size, b_stride * size):
            axes[-1] = (last_size * size, a_stride, b_stride)
        elif size != 1:
            axes.append((size, a_stride, b_stride))
    if not {axes[-1][1], axes[-1][2]} <= {0, 1}:  # the innermost axis had one element
        axes.append((1, 0, 0))
    dims, first, second = zip(*axes, strict=True)
    return dims, first, second
