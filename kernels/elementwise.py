"""Element-wise kernels: table lookup, quantize, dequantize, range, arithmetic on quantized operands; transpose.

Quantized values are bytes. For int8 `flip` is 128: `(byte ^ flip) - flip` is the value, and flip is moved into the
zero point, so that one compilation serves both signs. Every float operation is a single float32 one, division a true
division, and LLVM keeps them apart (no fastmath): the bits are those of the NumPy reference. AVX2 where the target has
it: vcvtdq2ps, vmulps, vdivps (the bound: 8 quotients in about 5 cycles), vmaxps, vminps, vcvtps2dq.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from .host import Bytes, Floats, Int64s, array, jit

ADD, SUB, MUL, DIV = range(4)
CHUNK = 1024
"""Elements that `binary` takes at once: its two float32 buffers stay in the L1 cache."""

TILE = 64
"""Rows and columns that `transpose` takes at once."""

_BYTES, _FLOATS = types.Array(types.uint8, 1, "C"), types.Array(types.float32, 1, "C")
_AFFINE = (types.float64, types.int64, types.int64)
"""Types of scale, zero_point, flip."""


@jit(types.void(array(types.uint8), array(types.uint8), _BYTES))
def lookup(x: Bytes, table: Bytes, out: Bytes) -> None:
    """out = table[x]."""
    for i in range(len(x)):
        out[i] = table[x[i]]


@jit(
    types.void(array(types.uint8, 3), types.Array(types.uint8, 3, "C")),
    types.void(array(types.uint32, 3), types.Array(types.uint32, 3, "C")),
)
def transpose(x: NDArray[Any], out: NDArray[Any]) -> None:
    """out [N, B, A] = x [N, A, B], by tiles that stay in the L1 cache."""
    images, rows, columns = x.shape
    for image in range(images):
        for row in range(0, rows, TILE):
            for column in range(0, columns, TILE):
                for c in range(column, min(column + TILE, columns)):
                    for r in range(row, min(row + TILE, rows)):
                        out[image, c, r] = x[image, r, c]


@jit(types.void(array(types.uint8), *_AFFINE, _FLOATS))
def dequantize(q: Bytes, scale: float, zero_point: int, flip: int, out: Floats) -> None:
    """out = float32(q - zero_point) * scale."""
    step, zero, sign = np.float32(scale), np.int32(zero_point + flip), np.int32(flip)
    for i in range(len(q)):
        out[i] = np.float32(np.int32((q[i] ^ sign) - zero)) * step


@jit(types.boolean(array(types.float32), types.float64, types.int64, types.float64, types.float64, _BYTES))
def quantize(x: Floats, scale: float, zero_point: int, low: float, high: float, out: Bytes) -> bool:
    """out = rne(clamp(x / scale, low, high)) + zero_point, where low and high have the zero point subtracted.

    NaN is stored as the zero point; returns whether there was any.
    """
    step, lowest, highest, zero = np.float32(scale), np.float32(low), np.float32(high), np.int32(zero_point)
    nans = np.int32(0)
    for i in range(len(x)):
        real = x[i] / step
        nans |= np.int32(real != real)
        real = real if real == real else np.float32(0)
        real = real if real > lowest else lowest
        real = real if real < highest else highest
        out[i] = np.int32(np.rint(real)) + zero
    return nans != 0


@jit(types.Tuple((types.float32, types.float32, types.boolean))(array(types.float32)), allocates=True)
def value_range(x: Floats) -> tuple[float, float, bool]:
    """The smallest and the largest of 0 and all elements but NaN; whether there is a NaN. In lanes, as vectors are."""
    lows, highs, nans = np.zeros(32, np.float32), np.zeros(32, np.float32), np.zeros(32, np.int32)
    for start in range(0, len(x), 32):
        values = x[start : start + 32]
        for j in range(len(values)):
            value = values[j]
            lows[j] = value if value < lows[j] else lows[j]
            highs[j] = value if value > highs[j] else highs[j]
            nans[j] |= np.int32(value != value)
    return lows.min(), highs.max(), nans.max() > 0


@jit()
def _reals(q: Bytes, start: int, step: int, scale: float, zero_point: int, flip: int, out: Floats) -> None:
    """Dequantize the bytes from `start` on: as many as out has, or (step 0) the same one for all."""
    if step:
        dequantize(q[start : start + len(out)], scale, zero_point, flip, out)
    else:
        dequantize(q[start : start + 1], scale, zero_point, flip, out[:1])
        out[:] = out[0]


@jit()
def _arithmetic(op: int, x: Floats, y: Floats) -> None:
    """x = x op y."""
    if op == ADD:
        for i in range(len(x)):
            x[i] += y[i]
    elif op == SUB:
        for i in range(len(x)):
            x[i] -= y[i]
    elif op == MUL:
        for i in range(len(x)):
            x[i] *= y[i]
    else:
        for i in range(len(x)):
            x[i] /= y[i]


_OPERAND = (array(types.uint8), array(types.int64), types.int64, *_AFFINE)
"""Types of memory, position of each line in it, step within a line (0 or 1), scale, zero_point, flip."""


@jit(
    types.void(
        types.int64,
        *_OPERAND,
        *_OPERAND,
        types.float64,
        types.int64,
        types.float64,
        types.float64,
        types.Array(types.uint8, 2, "C"),
    ),
    allocates=True,
)
def binary(
    op: int,
    a: Bytes,
    a_starts: Int64s,
    a_step: int,
    a_scale: float,
    a_zero_point: int,
    a_flip: int,
    b: Bytes,
    b_starts: Int64s,
    b_step: int,
    b_scale: float,
    b_zero_point: int,
    b_flip: int,
    scale: float,
    zero_point: int,
    low: float,
    high: float,
    out: Bytes,
) -> None:
    """Each line of out [lines, n]: dequantize, op, quantize. Line i reads its operand from `starts[i]` on, or, with
    step 0, there only. low and high have the zero point subtracted; 0 / 0 is stored as the zero point.
    """
    x, y = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    for line in range(len(out)):
        for i in range(0, out.shape[1], CHUNK):
            piece = out[line, i : i + CHUNK]
            left, right = x[: len(piece)], y[: len(piece)]
            _reals(a, a_starts[line] + i * a_step, a_step, a_scale, a_zero_point, a_flip, left)
            _reals(b, b_starts[line] + i * b_step, b_step, b_scale, b_zero_point, b_flip, right)
            _arithmetic(op, left, right)
            quantize(left, scale, zero_point, low, high, piece)
