"""From int32 sums to the output: bias, multiplier, offset, clamp, zero point, table.

    INT32      acc + bias
    FLOAT32    clamp(float32(acc + bias) * multiplier + offset, low, high)
    QUANTIZED  rne(clamp(float32(acc + bias) * multiplier, low, high)) + zero_point, then the table

The addition of the bias wraps modulo 2^32. Multiply and add stay two float32 operations (no FMA: `fastmath` is
off). For QUANTIZED, low and high are integers with the zero point already subtracted: clamping before rounding then
equals clamping after it, and keeps the conversion to int32 in range.

LLVM makes of the loops, with AVX2: vpaddd, vcvtdq2ps, vmulps, vmaxps, vminps, vcvtps2dq (which rounds half to
even), 8 columns at a time.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .host import Bytes, Floats, Int32s, array, inlined, jit

INT32, FLOAT32, QUANTIZED = range(3)
"""Kinds of output. Its memory is given as bytes."""

ARGUMENTS = (
    types.int64,
    array(types.int32),
    array(types.float32),
    array(types.float32),
    types.int64,
    types.float64,
    types.float64,
    array(types.uint8),
    types.Array(types.uint8, 1, "C"),
)
"""Types of kind, bias [N], multiplier [N], offset [N or 0], zero_point, low, high, table [256 or 0], out (bytes of
[M, N])."""


@inlined()
def _finish_int32(acc: Int32s, bias: Int32s, out: Int32s) -> None:
    for c in range(len(out)):
        out[c] = np.int32(acc[c] + bias[c])


@inlined()
def _finish_float32(
    acc: Int32s, bias: Int32s, multiplier: Floats, offset: Floats, low: float, high: float, out: Floats
) -> None:
    lowest, highest = np.float32(low), np.float32(high)
    for c in range(len(out)):
        real = np.float32(np.int32(acc[c] + bias[c])) * multiplier[c]
        if len(offset):
            real += offset[c]
        real = lowest if real < lowest else real
        out[c] = highest if real > highest else real


@inlined()
def _finish_quantized(
    acc: Int32s, bias: Int32s, multiplier: Floats, zero_point: int, low: float, high: float, table: Bytes, out: Bytes
) -> None:
    lowest, highest, zero = np.float32(low), np.float32(high), np.int32(zero_point)
    for c in range(len(out)):
        real = np.float32(np.int32(acc[c] + bias[c])) * multiplier[c]
        real = real if real > lowest else lowest
        real = real if real < highest else highest
        out[c] = np.int32(np.rint(real)) + zero
    if len(table):
        for c in range(len(out)):
            out[c] = table[out[c]]


@jit(types.void(array(types.int32, 2), types.int64, types.int64, types.int64, *ARGUMENTS))
def finish_rows(
    acc: Int32s,
    begin: int,
    column: int,
    columns: int,
    kind: int,
    bias: Int32s,
    multiplier: Floats,
    offset: Floats,
    zero_point: int,
    low: float,
    high: float,
    table: Bytes,
    out: Bytes,
) -> None:
    """Write out[begin : begin + len(acc), column : column + columns] from acc[:, :columns]."""
    total = len(bias)
    end = column + columns
    biases, multipliers, offsets = bias[column:end], multiplier[column:end], offset[column:end]
    if kind == INT32:
        ints = out.view(np.int32)
        for r in range(len(acc)):
            first = (begin + r) * total + column
            _finish_int32(acc[r], biases, ints[first : first + columns])
    elif kind == FLOAT32:
        floats = out.view(np.float32)
        for r in range(len(acc)):
            first = (begin + r) * total + column
            _finish_float32(acc[r], biases, multipliers, offsets, low, high, floats[first : first + columns])
    else:
        for r in range(len(acc)):
            first = (begin + r) * total + column
            piece = out[first : first + columns]
            _finish_quantized(acc[r], biases, multipliers, zero_point, low, high, table, piece)
