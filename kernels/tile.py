"""The tiles of one panel: the microkernel contract, and the choice of the microkernel (listed in `registry`)."""

from __future__ import annotations

from numba import types

from pyq.panels import PAIRS16, QUADS8

from . import scalar
from .host import AVX2, array, available_isas, jit

_SIGNATURE = types.void(
    types.int64, types.int64, array(types.uint8), array(types.int64), array(types.int32), array(types.uint8),
    types.Array(types.int32, 2, "C"),
)  # fmt: skip

if AVX2 in available_isas():
    from . import avx2

    @jit()
    def _avx2_tiles(layout, base, rows, offsets, weights, acc):  # type: ignore[no-untyped-def]
        """Tiles of 4 rows, then of 2 and 1 for what is left."""
        count = len(rows)
        if layout == PAIRS16:
            for r in range(0, count - 3, 4):
                avx2.pairs16(4, base, rows, r, offsets, weights, acc)
            if count & 2:
                avx2.pairs16(2, base, rows, count & ~3, offsets, weights, acc)
            if count & 1:
                avx2.pairs16(1, base, rows, count - 1, offsets, weights, acc)
        elif layout == QUADS8:
            for r in range(0, count - 3, 4):
                avx2.quads8(4, base, rows, r, offsets, weights, acc)
            if count & 2:
                avx2.quads8(2, base, rows, count & ~3, offsets, weights, acc)
            if count & 1:
                avx2.quads8(1, base, rows, count - 1, offsets, weights, acc)
        else:
            for r in range(0, count - 3, 4):
                avx2.taps16(4, base, rows, r, offsets, weights, acc)
            if count & 2:
                avx2.taps16(2, base, rows, count & ~3, offsets, weights, acc)
            if count & 1:
                avx2.taps16(1, base, rows, count - 1, offsets, weights, acc)

else:
    _avx2_tiles = scalar.tiles


@jit(_SIGNATURE)
def tiles(isa, layout, base, rows, offsets, weights, acc):  # type: ignore[no-untyped-def]
    """Overwrite acc, int32 [rows, 16], with the sums of one panel.

        acc[r, c] = sum over s of base[rows[r] + offsets[s] + 0..3] . weights[s, 0..3, c]    (PAIRS16, QUADS8)
        acc[r, c] = sum over s of base[rows[r] + offsets[s] + c]    * weights[s, c]          (TAPS16)

    base uint8 [bytes], rows int64 byte positions, offsets int32 [steps], weights uint8 from the panel's start on.
    Nothing is checked; 16 bytes must be readable at each position, whichever layout.
    """
    if isa == AVX2:
        _avx2_tiles(layout, base, rows, offsets, weights, acc)
    else:
        scalar.tiles(layout, base, rows, offsets, weights, acc)
