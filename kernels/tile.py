"""The tiles of one panel: the microkernel contract, and the choice of the microkernel (`registry` lists them)."""

from __future__ import annotations

from numba import types

from pyq.panels import PAIRS16, QUADS8

from . import scalar
from .host import AVX2, Bytes, Int16s, Int32s, Int64s, array, available_isas, jit

if AVX2 in available_isas():
    from . import avx2

    @jit()
    def _avx2_tiles(
        layout: int, data: Bytes, words: Int16s, rows: Int64s, offsets: Int32s, weights: Bytes, acc: Int32s
    ) -> None:
        """Tiles of 4 rows, then of 2 and of 1 for what is left."""
        count = len(rows)
        if layout == PAIRS16:
            for r in range(0, count - 3, 4):
                avx2.pairs16(4, words, rows, r, offsets, weights, acc)
            if count & 2:
                avx2.pairs16(2, words, rows, count & ~3, offsets, weights, acc)
            if count & 1:
                avx2.pairs16(1, words, rows, count - 1, offsets, weights, acc)
        elif layout == QUADS8:
            for r in range(0, count - 3, 4):
                avx2.quads8(4, data, rows, r, offsets, weights, acc)
            if count & 2:
                avx2.quads8(2, data, rows, count & ~3, offsets, weights, acc)
            if count & 1:
                avx2.quads8(1, data, rows, count - 1, offsets, weights, acc)
        else:
            for r in range(0, count - 3, 4):
                avx2.taps16(4, data, rows, r, offsets, weights, acc)
            if count & 2:
                avx2.taps16(2, data, rows, count & ~3, offsets, weights, acc)
            if count & 1:
                avx2.taps16(1, data, rows, count - 1, offsets, weights, acc)

else:
    _avx2_tiles = scalar.tiles  # a name for the compiler: the instruction set is never chosen here


@jit(
    types.void(
        types.int64,
        types.int64,
        array(types.uint8),
        array(types.int16),
        array(types.int64),
        array(types.int32),
        array(types.uint8),
        types.Array(types.int32, 2, "C"),
    )
)
def tiles(
    isa: int,
    layout: int,
    data: Bytes,
    words: Int16s,
    rows: Int64s,
    offsets: Int32s,
    weights: Bytes,
    acc: Int32s,
) -> None:
    """Overwrite acc, int32 [len(rows), 16], with the sums of one panel, modulo 2^32.

        PAIRS16  acc[r, c] = sum over s of words[rows[r] + offsets[s] + 0..3] . w[s, 0..3, c]
        QUADS8   acc[r, c] = sum over s of data[rows[r] + offsets[s] + 0..3] . w[s, 0..3, c]
        TAPS16   acc[r, c] = sum over s of data[rows[r] + offsets[s] + c] * w[s, c]

    data: activations as uint8; words: the same as int16; either is empty when no panel needs it. rows int64
    positions, offsets int32 [steps], weights uint8, from the start of the panel on. Nothing is checked. TAPS16
    reads 16 elements at each position, however few columns count.
    """
    if isa == AVX2:
        _avx2_tiles(layout, data, words, rows, offsets, weights, acc)
    else:
        scalar.tiles(layout, data, words, rows, offsets, weights, acc)
