"""Softmax and layer normalization of rows; the twin of csrc/normalize.c, which explains sums and `exp`.

Float operations are single float32 ones, and LLVM keeps them apart and in order (no fastmath): it vectorises the loops
over elements and over lanes (AVX2: vmulps, vaddps, vdivps), not the sums.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from .host import Bytes, Floats, Int32s, array, inlined, jit

LANES, BLOCK = 16, 1024

_MATRIX, _RESULT = array(types.float32, 2), types.Array(types.float32, 2, "C")
_VECTOR = types.Array(types.float32, 1, "C")


@inlined()
def _exponential(t: Any) -> Any:
    """e^t for t <= 0; 0 where n is -127; NaN for NaN."""
    magic = np.float32(12582912)
    t = np.float32(-88) if t < np.float32(-88) else t
    shifted = t * np.float32(1.44269504) + magic
    n = shifted - magic
    r = (t - n * np.float32(0.693359375)) - n * np.float32(-2.12194440e-4)
    q = np.float32(1.3814321e-3)
    q = q * r + np.float32(8.3688516e-3)
    q = q * r + np.float32(4.1668400e-2)
    q = q * r + np.float32(1.6666520e-1)
    q = q * r + np.float32(4.9999994e-1)
    power = np.int32((np.float32(shifted).view(np.int32) + np.int32(127)) << np.int32(23)).view(np.float32)
    return (q * (r * r) + r + np.float32(1)) * power


@inlined()
def _block_sum(x: Floats, squares: bool, lanes: Floats) -> Any:
    lanes[:] = 0
    whole = len(x) // LANES * LANES
    for i in range(0, whole, LANES):
        for j in range(LANES):
            lanes[j] += x[i + j] * x[i + j] if squares else x[i + j]
    for i in range(whole, len(x)):
        lanes[i - whole] += x[i] * x[i] if squares else x[i]
    for half in (8, 4, 2, 1):
        for j in range(half):
            lanes[j] += lanes[j + half]
    return lanes[0]


@inlined()
def _sum(x: Floats, squares: bool, lanes: Floats) -> Any:
    """The sum of all elements, or of their squares."""
    total = np.float32(0)
    for start in range(0, len(x), BLOCK):
        total += _block_sum(x[start : start + BLOCK], squares, lanes)
    return total


@jit(types.void(_MATRIX, _RESULT), allocates=True)
def softmax(x: Floats, out: Floats) -> None:
    """out = softmax of each row."""
    lanes = np.empty(LANES, np.float32)
    for row in range(len(x)):
        top = x[row, 0]
        for value in x[row]:
            top = value if value > top else top
        y = out[row]
        for i in range(len(y)):
            y[i] = _exponential(x[row, i] - top)
        total = _sum(y, False, lanes)
        for i in range(len(y)):
            y[i] /= total


@jit(
    types.void(_MATRIX, array(types.float32), array(types.float32), types.float64, _RESULT, _VECTOR, _VECTOR),
    allocates=True,
)
def layer_norm(
    x: Floats, scale: Floats, bias: Floats, epsilon: float, out: Floats, mean: Floats, inverse: Floats
) -> None:
    """out = (x - mean) * inverse * scale + bias for each row; an empty bias adds nothing."""
    lanes, count = np.empty(LANES, np.float32), np.float32(x.shape[1])
    for row in range(len(x)):
        y = out[row]
        center = _sum(x[row], False, lanes) / count
        for i in range(len(y)):
            y[i] = x[row, i] - center
        factor = np.float32(1) / np.sqrt(_sum(y, True, lanes) / count + np.float32(epsilon))
        for i in range(len(y)):
            y[i] = y[i] * factor * scale[i]
        for i in range(len(bias)):
            y[i] += bias[i]
        mean[row], inverse[row] = center, factor


@jit(types.void(array(types.uint8, 2), types.int64, array(types.int32), _RESULT))
def softmax_of_bytes(q: Bytes, flip: int, exponentials: Int32s, out: Floats) -> None:
    """out = e / sum(e) of each row, with e = exponentials[max(q) - q]; bytes are in order once flipped."""
    sign = np.uint8(flip)
    for row in range(len(q)):
        top = np.uint8(0)
        for value in q[row]:
            top = max(top, value ^ sign)
        total, y = np.int64(0), out[row]
        for i in range(len(y)):
            term = exponentials[top - (q[row, i] ^ sign)]
            total += term
            y[i] = np.float32(term)
        for i in range(len(y)):
            y[i] /= np.float32(total)
