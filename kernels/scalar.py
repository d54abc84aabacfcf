"""Plain-loop microkernels, for targets without AVX2 and for `PYQ_ISA=scalar`: the contract in its shortest form.

Exact: products of u8 and folded weights (|w| <= 255) are added in int32, modulo 2^32. LLVM vectorizes the loops
over the 16 columns with what the target has (with AVX2: vpmulld or vpmaddwd, and shuffles), if it does not know how
many they are: it would unroll a loop of 16 instead. About a tenth as fast as the AVX2 kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.panels import NR, PAIRS8W, PAIRS16, TAPS16

from .host import Bytes, Int16s, Int32s, Int64s, jit


@jit()
def _pairs(data: Int16s, row: int, offsets: Int32s, weights: NDArray[Any], sums: Int32s) -> None:
    """int16 or int8 [steps][2][16][2]: elements 0, 1 of the quad meet [0], elements 2, 3 meet [1]."""
    for s in range(len(offsets)):
        quad = data[row + offsets[s] :]
        x0, x1, x2, x3 = np.int32(quad[0]), np.int32(quad[1]), np.int32(quad[2]), np.int32(quad[3])
        w01 = weights[4 * NR * s :]
        w23 = w01[2 * NR :]
        for c in range(len(sums)):
            sums[c] += np.int32(x0 * w01[2 * c] + x1 * w01[2 * c + 1] + x2 * w23[2 * c] + x3 * w23[2 * c + 1])


@jit()
def _quads(data: Bytes, row: int, offsets: Int32s, weights: NDArray[np.int8], sums: Int32s) -> None:
    """int8[steps][16][4]; sums in int32 need no certificate."""
    for s in range(len(offsets)):
        quad = data[row + offsets[s] :]
        x0, x1, x2, x3 = np.int32(quad[0]), np.int32(quad[1]), np.int32(quad[2]), np.int32(quad[3])
        w = weights[4 * NR * s :]
        for c in range(len(sums)):
            sums[c] += np.int32(x0 * w[4 * c] + x1 * w[4 * c + 1] + x2 * w[4 * c + 2] + x3 * w[4 * c + 3])


@jit()
def _taps(data: Bytes, row: int, offsets: Int32s, weights: Int16s, sums: Int32s) -> None:
    """int16[steps / 2][16][2]: a tap is 16 consecutive bytes, one a channel."""
    for s in range(0, len(offsets), 2):
        first, second = data[row + offsets[s] :], data[row + offsets[s + 1] :]
        w = weights[NR * s :]
        for c in range(len(sums)):
            sums[c] += np.int32(first[c] * w[2 * c] + second[c] * w[2 * c + 1])


@jit()
def run(
    layout: int,
    data: Bytes,
    words: Int16s,
    rows: Int64s,
    offsets: Int32s,
    weights: Bytes,
    acc: Int32s,
) -> None:
    """The microkernel of a layout, row by row; its arguments are those of `tile.tiles`."""
    for r in range(len(rows)):
        row, sums = rows[r], acc[r]
        if layout == PAIRS16:
            _pairs(words, row, offsets, weights.view(np.int16), sums)
        elif layout == PAIRS8W:
            _pairs(words, row, offsets, weights.view(np.int8), sums)
        elif layout == TAPS16:
            _taps(data, row, offsets, weights.view(np.int16), sums)
        else:
            _quads(data, row, offsets, weights.view(np.int8), sums)
