"""Element-wise kernels on flat arrays: table lookup, quantize, dequantize, and arithmetic on quantized operands.

Quantized values are bytes. For int8 `flip` is 128: `(byte ^ flip) - flip` is the value, and flip is moved into the
zero point, so that one compilation serves both signs. Every float operation is a single float32 one, division a true
division, and LLVM keeps them apart (no fastmath): the bits are those of the NumPy reference. AVX2 where the target has
it: vcvtdq2ps, vmulps, vdivps (the bound: 8 quotients in about 5 cycles), vmaxps, vminps, vcvtps2dq.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .host import array, jit

ADD, SUB, MUL, DIV = range(4)
CHUNK = 1024
"""Elements that `binary` takes at once: its two float32 buffers stay in the L1 cache."""

_BYTES, _FLOATS = types.Array(types.uint8, 1, "C"), types.Array(types.float32, 1, "C")
_AFFINE = (types.float64, types.int64, types.int64)
"""Types of scale, zero_point, flip."""


@jit(types.void(array(types.uint8), array(types.uint8), _BYTES))
def lookup(x, table, out):  # type: ignore[no-untyped-def]
    """out = table[x]."""
    for i in range(len(x)):
        out[i] = table[x[i]]


@jit(types.void(array(types.uint8), *_AFFINE, _FLOATS))
def dequantize(q, scale, zero_point, flip, out):  # type: ignore[no-untyped-def]
    """out = float32(q - zero_point) * scale."""
    step, zero, sign = np.float32(scale), np.int32(zero_point + flip), np.int32(flip)
    for i in range(len(q)):
        out[i] = np.float32(np.int32((q[i] ^ sign) - zero)) * step


@jit(types.boolean(array(types.float32), types.float64, types.int64, types.float64, types.float64, _BYTES))
def quantize(x, scale, zero_point, low, high, out):  # type: ignore[no-untyped-def]
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


@jit()
def _reals(q, start, step, scale, zero_point, flip, out):  # type: ignore[no-untyped-def]
    """Dequantize the bytes from `start` on: as many as out has, or (step 0) the same one for all."""
    if step:
        dequantize(q[start : start + len(out)], scale, zero_point, flip, out)
    else:
        dequantize(q[start : start + 1], scale, zero_point, flip, out[:1])
        out[:] = out[0]


@jit()
def _arithmetic(op, x, y):  # type: ignore[no-untyped-def]
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


@jit(types.boolean(
    types.int64, *_OPERAND, *_OPERAND, types.float64, types.int64, types.float64, types.float64,
    types.Array(types.uint8, 2, "C"),
))  # fmt: skip
def binary(  # type: ignore[no-untyped-def]
    op, a, a_starts, a_step, a_scale, a_zero_point, a_flip, b, b_starts, b_step, b_scale, b_zero_point, b_flip,
    scale, zero_point, low, high, out,
):  # fmt: skip
    """Each line of out [lines, n]: dequantize, op, quantize. A line starts anywhere in its operand's memory.

    Returns whether a result was NaN (0 / 0), stored as the zero point.
    """
    x, y = np.empty(CHUNK, np.float32), np.empty(CHUNK, np.float32)
    nans = False
    for line in range(len(out)):
        target = out[line]
        for i in range(0, len(target), CHUNK):
            part = target[i : i + CHUNK]
            left, right = x[: len(part)], y[: len(part)]
            _reals(a, a_starts[line] + i * a_step, a_step, a_scale, a_zero_point, a_flip, left)
            _reals(b, b_starts[line] + i * b_step, b_step, b_scale, b_zero_point, b_flip, right)
            _arithmetic(op, left, right)
            nans |= quantize(left, scale, zero_point, low, high, part)
    return nans
