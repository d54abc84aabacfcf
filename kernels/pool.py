"""Maximum and average pools of images that lie channels last; the twin of csrc/pool.c.

The loops run over all channels of a pixel, which LLVM vectorises (AVX2: vpmaxub; vpmovzxbd and vpaddd for sums).
`flip` is 128 for int8, whose bytes are thereby moved to 0 .. 255 in the same order. Sums are exact in int32.
"""

from __future__ import annotations

import numpy as np
from numba import types

from .elementwise import quantize
from .host import Bytes, Floats, Int64s, array, jit

_WINDOWS = (
    array(types.uint8, 2),
    types.int64,
    *[array(types.int64)] * 4,
    types.int64,
    array(types.float32, 2),
)
"""Types of images (as rows of bytes), flip, and the fields of `pyq.pool_windows.Windows`."""

_PIXELS = types.Array(types.uint8, 2, "C")


@jit(types.void(*_WINDOWS, _PIXELS))
def max_pool(
    x: Bytes,
    flip: int,
    starts: Int64s,
    offsets: Int64s,
    firsts: Int64s,
    taps: Int64s,
    step: int,
    counts: Floats,
    out: Bytes,
) -> None:
    """out [pixels, channels] = the largest element of each window."""
    sign, (rows, columns) = np.uint8(flip), counts.shape
    for pixel in range(len(out)):
        row, column = pixel // columns % rows, pixel % columns
        image, most = x[pixel // columns // rows], out[pixel]
        most[:] = 0
        for r in range(starts[row], starts[row + 1]):
            for c in range(taps[column]):
                at = offsets[r] + firsts[column] + c * step
                values = image[at : at + len(most)]
                for i in range(len(most)):
                    most[i] = max(most[i], values[i] ^ sign)
        for i in range(len(most)):
            most[i] ^= sign


@jit(
    types.void(
        *_WINDOWS, types.float64, types.int64, types.float64, types.int64, types.float64, types.float64, _PIXELS
    ),
    allocates=True,
)
def average_pool(
    x: Bytes,
    flip: int,
    starts: Int64s,
    offsets: Int64s,
    firsts: Int64s,
    taps: Int64s,
    step: int,
    counts: Floats,
    x_scale: float,
    x_zero_point: int,
    scale: float,
    zero_point: int,
    low: float,
    high: float,
    out: Bytes,
) -> None:
    """out [pixels, channels] = float32(sum - zero point * elements) * scale / count, quantized."""
    sign, (rows, columns), unit = np.uint8(flip), counts.shape, np.float32(x_scale)
    sums, means = np.empty(out.shape[1], np.int32), np.empty(out.shape[1], np.float32)
    for pixel in range(len(out)):
        row, column = pixel // columns % rows, pixel % columns
        image = x[pixel // columns // rows]
        sums[:] = 0
        for r in range(starts[row], starts[row + 1]):
            for c in range(taps[column]):
                at = offsets[r] + firsts[column] + c * step
                values = image[at : at + len(sums)]
                for i in range(len(sums)):
                    sums[i] += np.int32(values[i] ^ sign)
        zero = np.int32((x_zero_point + flip) * taps[column] * (starts[row + 1] - starts[row]))
        for i in range(len(sums)):
            means[i] = np.float32(sums[i] - zero) * unit / counts[row, column]
        quantize(means, scale, zero_point, low, high, out[pixel])
