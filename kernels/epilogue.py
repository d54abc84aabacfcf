"""From int32 sums to the output: bias, multiplier, offset, clamp, zero point, table.

    int32    acc + bias
    float32  clamp(float32(acc + bias) * multiplier + offset, low, high)
    bytes    rne(clamp(float32(acc + bias) * multiplier, low, high)) + zero_point, then the table

The addition of the bias wraps modulo 2^32. Multiply and add stay two float32 operations (no FMA: `fastmath` is off).
For bytes, low and high are integers and the zero point is already subtracted: clamping before rounding then equals
clamping after it, and keeps the conversion to int32 in range. An output of int8 is given as its bytes.

LLVM makes AVX2 code of the loops: vpaddd, vcvtdq2ps, vmulps, vmaxps, vminps, vcvtps2dq (which rounds half to even).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from .host import OPTIONS, array

ARGUMENTS = (
    array(types.int32), array(types.float32), array(types.float32),
    types.int64, types.float64, types.float64, array(types.uint8),
)  # fmt: skip
"""Types of bias [N], multiplier [N], offset [N or 0], zero_point, low, high, table [256 or 0]."""

OUTPUTS = tuple(types.Array(dtype, 2, "C") for dtype in (types.int32, types.float32, types.uint8))
"""Types of out [M, N]."""


def finish(acc, out, bias, multiplier, offset, zero_point, low, high, table):  # type: ignore[no-untyped-def]
    """Write the columns of out, one row of the output or a part of it, from as many sums, biases, multipliers."""
    raise NotImplementedError("exists in compiled code only")


def _finish_int32(acc, out, bias, multiplier, offset, zero_point, low, high, table):  # type: ignore[no-untyped-def]
    for c in range(len(out)):
        out[c] = np.int32(acc[c] + bias[c])


def _finish_float32(acc, out, bias, multiplier, offset, zero_point, low, high, table):  # type: ignore[no-untyped-def]
    lowest, highest = np.float32(low), np.float32(high)
    for c in range(len(out)):
        real = np.float32(np.int32(acc[c] + bias[c])) * multiplier[c]
        if len(offset):
            real += offset[c]
        real = lowest if real < lowest else real
        out[c] = highest if real > highest else real


def _finish_bytes(acc, out, bias, multiplier, offset, zero_point, low, high, table):  # type: ignore[no-untyped-def]
    lowest, highest, zero = np.float32(low), np.float32(high), np.int32(zero_point)
    for c in range(len(out)):
        real = np.float32(np.int32(acc[c] + bias[c])) * multiplier[c]
        real = real if real > lowest else lowest
        real = real if real < highest else highest
        out[c] = np.int32(np.rint(real)) + zero
    if len(table):
        for c in range(len(out)):
            out[c] = table[out[c]]


_FINISH = {types.int32: _finish_int32, types.float32: _finish_float32, types.uint8: _finish_bytes}


@overload(finish, jit_options={**OPTIONS, "forceinline": True})  # type: ignore[untyped-decorator]
def _choose(acc, out, bias, multiplier, offset, zero_point, low, high, table):  # type: ignore[no-untyped-def]
    return _FINISH[out.dtype]
