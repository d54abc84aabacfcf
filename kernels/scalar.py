"""Plain-loop microkernels, for targets without AVX2 and for `PYQ_ISA=scalar`: the contract in its shortest form.

Exact: products of u8 and folded weights (|w| <= 255) are added in int32, modulo 2^32. LLVM vectorizes the loops
over the 16 columns with what the target has; the sums are written back after each step, which bounds the speed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyq.panels import NR, PAIRS16, QUADS8

from .host import Bytes, Int16s, Int32s, Int64s, jit


@jit()
def _pairs16(words: Int16s, row: int, offsets: Int32s, weights: Int16s, sums: Int32s) -> None:
    """int16[steps][2][16][2]: elements 0, 1 of the quad meet [0], elements 2, 3 meet [1]."""
    for s in range(len(offsets)):
        quad = row + offsets[s]
        for half in range(2):
            first, second = np.int32(words[quad + 2 * half]), np.int32(words[quad + 2 * half + 1])
            for c in range(NR):
                pair = ((2 * s + half) * NR + c) * 2
                sums[c] += np.int32(first * weights[pair] + second * weights[pair + 1])


@jit()
def _quads8(data: Bytes, row: int, offsets: Int32s, weights: NDArray[np.int8], sums: Int32s) -> None:
    """int8[steps][16][4]; sums in int32 need no certificate."""
    for s in range(len(offsets)):
        quad = row + offsets[s]
        for k in range(4):
            byte = np.int32(data[quad + k])
            for c in range(NR):
                sums[c] += np.int32(byte * weights[(s * NR + c) * 4 + k])


@jit()
def _taps16(data: Bytes, row: int, offsets: Int32s, weights: Int16s, sums: Int32s) -> None:
    """int16[steps / 2][16][2]: a tap is 16 consecutive bytes, one a channel."""
    for s in range(len(offsets)):
        tap = row + offsets[s]
        for c in range(NR):
            sums[c] += np.int32(np.int32(data[tap + c]) * weights[((s // 2) * NR + c) * 2 + s % 2])


@jit()
def tiles(layout: int, data: Bytes, words: Int16s, rows: Int64s, offsets: Int32s, weights: Bytes, acc: Int32s) -> None:
    """See `tile.tiles`."""
    for r in range(len(rows)):
        sums = acc[r]
        sums[:] = 0
        if layout == PAIRS16:
            _pairs16(words, rows[r], offsets, weights.view(np.int16), sums)
        elif layout == QUADS8:
            _quads8(data, rows[r], offsets, weights.view(np.int8), sums)
        else:
            _taps16(data, rows[r], offsets, weights.view(np.int16), sums)
