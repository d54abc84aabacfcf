"""Plain-loop microkernels, for targets without AVX2 and for `PYQ_ISA=scalar`: the contract in its shortest form.

Exact: products of u8 and folded weights (|w| <= 255) are added in int32, modulo 2^32. LLVM vectorizes the loops over
the 16 columns with what the target has.
"""

from __future__ import annotations

import numpy as np

from pyq.panels import NR, PAIRS16, QUADS8

from .host import jit


@jit()
def _pairs16(base, row, offsets, weights, sums):  # type: ignore[no-untyped-def]
    """int16[steps][2][16][2]: bytes k0, k2 of the quad meet [0], bytes k1, k3 meet [1]."""
    for s in range(len(offsets)):
        quad = row + offsets[s]
        for half in range(2):
            even, odd = np.int32(base[quad + half]), np.int32(base[quad + half + 2])
            for c in range(NR):
                pair = ((2 * s + half) * NR + c) * 2
                sums[c] += np.int32(even * weights[pair] + odd * weights[pair + 1])


@jit()
def _quads8(base, row, offsets, weights, sums):  # type: ignore[no-untyped-def]
    """int8[steps][16][4]; sums in int32 need no certificate."""
    for s in range(len(offsets)):
        quad = row + offsets[s]
        for k in range(4):
            byte = np.int32(base[quad + k])
            for c in range(NR):
                sums[c] += np.int32(byte * weights[(s * NR + c) * 4 + k])


@jit()
def _taps16(base, row, offsets, weights, sums):  # type: ignore[no-untyped-def]
    """int16[steps / 2][16][2]: a tap is 16 consecutive bytes, one a channel."""
    for s in range(len(offsets)):
        tap = row + offsets[s]
        for c in range(NR):
            sums[c] += np.int32(np.int32(base[tap + c]) * weights[((s // 2) * NR + c) * 2 + s % 2])


@jit()
def tiles(layout, base, rows, offsets, weights, acc):  # type: ignore[no-untyped-def]
    """See `tile.tiles`."""
    for r in range(len(rows)):
        sums = acc[r]
        sums[:] = 0
        if layout == PAIRS16:
            _pairs16(base, rows[r], offsets, weights.view(np.int16), sums)
        elif layout == QUADS8:
            _quads8(base, rows[r], offsets, weights.view(np.int8), sums)
        else:
            _taps16(base, rows[r], offsets, weights.view(np.int16), sums)
