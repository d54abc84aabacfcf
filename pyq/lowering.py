"""From arrays to what the kernels take: byte rows, offsets, and an epilogue with everything folded into its bias.

The C and the Numba backend share this. Kernels see activations in [0, 255] only: an int8 value is shifted up by half of
``amax + 1`` and its zero point with it, which no integer result can tell. The activation's zero point then costs
nothing in the loop: ``sum((a - za) * w) = sum(a * w) - za * colsum(w)``, and that goes into the bias.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq.backends import ConvGeometry, Epilogue
from pyq.packing import PackedWeight
from pyq.panels import NR, PAIRS16
from pyq.qparams import QParams

SLACK = 64  # elements behind a buffer that a kernel may read


class Rows(NamedTuple):
    """Row (n, h, w) of the activations starts at element ``n * stride_n + h * stride_h + w * stride_w``.

    The elements lie in ``data`` as bytes, in ``words`` as int16, or in both, as the layouts of the panels need.
    """

    data: NDArray[np.uint8] | None
    words: NDArray[np.int16] | None
    images: int
    height: int
    width: int
    stride_n: int
    stride_h: int
    stride_w: int
    zero_point: int


_thread = threading.local()


def _scratch(name: str, size: int, dtype: type) -> NDArray[Any]:
    """This thread's scratch buffer ``name``, grown to ``size`` elements plus slack; valid until the next call."""
    buffer: NDArray[Any] | None = getattr(_thread, name, None)
    if buffer is None or len(buffer) < size + SLACK:
        buffer = np.zeros(size + SLACK, dtype)
        setattr(_thread, name, buffer)
    return buffer[: size + SLACK]


def _shift(x: NDArray[Any], amax: int) -> int:
    """What to add to ``x`` to get bytes; checks that they stay within ``amax``."""
    shift = 0 if x.dtype == np.uint8 else (amax + 1) // 2
    if amax < 255 and x.size:
        low, high = int(x.min()), int(x.max())
        if low + shift < 0 or high + shift > amax:
            allowed = f"{-shift} to {amax - shift}"
            raise ValueError(
                f"x: got values from {low} to {high}, but the weights were packed for {allowed} (amax={amax})"
            )
    return shift


def _as_bytes(x: NDArray[Any], shift: int, out: NDArray[np.uint8]) -> None:
    if shift:
        np.add(x.view(np.uint8), np.uint8(shift), out=out)  # modulo 256
    else:
        np.copyto(out, x)


def _as_words(x: NDArray[Any], shift: int, out: NDArray[np.int16]) -> None:
    np.copyto(out, x)  # a plain copy converts twice as fast as an addition
    if shift:
        out += np.int16(shift)


def lower_matmul(x: NDArray[Any], zero_point: int, w: PackedWeight) -> Rows:
    """Rows of a matrix ``[M, K]``. Bytes are copied only when int8, not contiguous, or K is not a multiple of 4."""
    m, k = x.shape
    shift = _shift(x, w.amax)
    data = words = None
    if w.layouts != {PAIRS16}:
        if shift or k % 4 or not x.flags.c_contiguous:
            data = _scratch("data", m * k, np.uint8)
            _as_bytes(x, shift, data[: m * k].reshape(m, k))
        else:
            data = x.reshape(-1)
    if PAIRS16 in w.layouts:
        words = _scratch("words", m * k, np.int16)
        _as_words(x, shift, words[: m * k].reshape(m, k))
    return Rows(data, words, 1, 1, m, 0, 0, k, zero_point + shift)


def lower_conv(x: NDArray[Any], zero_point: int, w: PackedWeight, geometry: ConvGeometry) -> Rows:
    """Rows of NHWC images: the top-left pixel under the kernel at each output pixel. Padding is copied in once."""
    n, h, width, c = x.shape
    shift = _shift(x, w.amax)
    zero = zero_point + shift
    if any(geometry.pads) and not 0 <= zero <= w.amax:
        raise ValueError(
            f"x_zero_point: got {zero_point}, which weights packed for amax={w.amax} do not allow as padding"
        )
    top, left, bottom, right = geometry.pads
    shape = (n, h + top + bottom, width + left + right, c)

    def padded(name: str, dtype: type, convert: Callable[[NDArray[Any], int, NDArray[Any]], None]) -> NDArray[Any]:
        size = math.prod(shape)
        buffer = _scratch(name, size, dtype)
        images = buffer[:size].reshape(shape)
        if any(geometry.pads):
            images[:] = zero
        convert(x, shift, images[:, top : top + h, left : left + width])
        return buffer

    data = words = None
    if w.layouts != {PAIRS16}:
        usable = not shift and not any(geometry.pads) and x.flags.c_contiguous and reads_exactly(w, c)
        data = x.reshape(-1) if usable else padded("data", np.uint8, _as_bytes)
    if PAIRS16 in w.layouts:
        words = padded("words", np.int16, _as_words)
    out_h, out_w = geometry.output_size((h, width), w.kernel_shape)
    stride_h, stride_w = geometry.strides
    row = shape[2] * c
    return Rows(data, words, n, out_h, out_w, shape[1] * row, stride_h * row, stride_w * c, zero)


def reads_exactly(w: PackedWeight, channels: int) -> bool:
    """Whether the kernels read nothing behind the images: whole quads, or whole panels of 16 channels."""
    return channels % NR == 0 if w.kind == "depthwise" else w.run % 4 == 0


def conv_offsets(x: NDArray[Any], w: PackedWeight, geometry: ConvGeometry) -> NDArray[np.int32]:
    """Offsets of the steps for NHWC images like ``x``."""
    _, _, width, c = x.shape
    if w.kind == "conv" and w.runs_per_row == 1 and w.kernel_shape[1] > 1 and geometry.dilations[1] != 1:
        raise ValueError(
            f"dilations: got {geometry.dilations}, but the weights were packed for 1; pack them with dilations="
        )
    row = (width + geometry.pads[1] + geometry.pads[3]) * c
    return w.offsets(row, c, geometry.dilations)


def _per_column(values: NDArray[Any] | None, columns: int, dtype: type) -> NDArray[Any] | None:
    if values is None:
        return None
    return np.ascontiguousarray(np.broadcast_to(np.asarray(values, dtype), (columns,)))


class LoweredEpilogue(NamedTuple):
    """An epilogue as the kernels take it: contiguous arrays per column, finite float bounds minus the zero point."""

    bias: NDArray[np.int32] | None
    multiplier: NDArray[np.float32] | None
    offset: NDArray[np.float32] | None
    low: float
    high: float


def lower_epilogue(epilogue: Epilogue, columns: int, correction: NDArray[np.int32] | None = None) -> LoweredEpilogue:
    """Broadcast per-column arrays and add ``correction`` (``-za * colsum``, int32 that wraps) to the bias."""
    bias = _per_column(epilogue.bias, columns, np.int32)
    if correction is not None:
        bias = correction if bias is None else bias + correction
    low, high = epilogue.low, epilogue.high
    if epilogue.dtype in (np.uint8, np.int8):
        limits = np.iinfo(epilogue.dtype)
        low = (limits.min if low is None else low) - epilogue.zero_point
        high = (limits.max if high is None else high) - epilogue.zero_point
    return LoweredEpilogue(
        bias,
        _per_column(epilogue.multiplier, columns, np.float32),
        _per_column(epilogue.offset, columns, np.float32),
        -np.inf if low is None else low,
        np.inf if high is None else high,
    )


def zero_point_correction(w: PackedWeight, zero_point: int) -> NDArray[np.int32] | None:
    """``-zero_point * colsum``, int32 modulo 2^32; None when there is nothing to correct."""
    return w.colsum * np.int32(-zero_point) if zero_point else None


def memory_order(x: NDArray[Any]) -> tuple[int, ...]:
    """The axes of ``x`` from the largest stride to the smallest: in this order it is walked through memory."""
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis])))


class Walk(NamedTuple):
    """The order in which an element-wise kernel visits an array, so that NHWC input gives NHWC output.

    ``shape`` is in that order; ``order[i]`` is the axis of the logical array that comes i-th.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]

    @staticmethod
    def along(x: NDArray[Any]) -> Walk:
        """The walk that follows the memory of ``x``."""
        order = memory_order(x)
        return Walk(tuple(x.shape[axis] for axis in order), order)

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
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        logical = target.reshape(self.shape).transpose(inverse)
        if out is None:
            return logical
        if not np.may_share_memory(out, target):
            out[...] = logical
        return out

    def slices(self, params: QParams) -> Iterator[tuple[slice, float, int]]:
        """Runs of elements that share one scale and zero point, with both: the whole, when quantized per tensor."""
        if params.axis is None:
            yield slice(0, math.prod(self.shape)), float(params.scale), int(params.zero_point)
            return
        position = self.order.index(params.axis % len(self.order))
        run = math.prod(self.shape[position + 1 :])
        for index in range(math.prod(self.shape[: position + 1])):
            channel = index % self.shape[position]
            part = slice(index * run, (index + 1) * run)
            yield part, float(params.scale[channel]), int(params.zero_point[channel])


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
    shape = np.broadcast_shapes(a.shape, b.shape)
    filling = next((x for x in (a, b) if x.shape == shape), np.empty(shape, np.bool_))
    order = memory_order(filling)
    first, second = (_unit_inner(np.broadcast_to(x, shape).transpose(order)) for x in (a, b))
    dims, a_strides, b_strides = merged_dimensions(first, second)
    walk = Walk(first.shape, order)
    return walk, BinaryLines(first, a_params, dims, a_strides), BinaryLines(second, b_params, dims, b_strides)


def _unit_inner(x: NDArray[Any]) -> NDArray[Any]:
    """``x`` itself when it is 0-d or its last stride is 0 or 1 byte, else a contiguous copy."""
    return x if not x.ndim or x.strides[-1] in (0, 1) else np.ascontiguousarray(x)


def merged_dimensions(a: NDArray[Any], b: NDArray[Any]) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shape and byte strides of two operands, every pair of axes merged that both cross in one even stride."""
    axes = [(1, 0, 0)]
    for size, a_stride, b_stride in zip(a.shape, a.strides, b.strides, strict=True):
        last_size, last_a, last_b = axes[-1]
        if last_size == 1:
            axes[-1] = (size, a_stride, b_stride)
        elif (last_a, last_b) == (a_stride * size, b_stride * size):
            axes[-1] = (last_size * size, a_stride, b_stride)
        elif size != 1:
            axes.append((size, a_stride, b_stride))
    if not {axes[-1][1], axes[-1][2]} <= {0, 1}:  # the innermost axis had one element
        axes.append((1, 0, 0))
    dims, a_strides, b_strides = zip(*axes, strict=True)
    return dims, a_strides, b_strides
