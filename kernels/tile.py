"""The tiles of one segment: the microkernel contract, and the choice of the microkernel (`registry` lists them)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from pyq.panels import LAYOUT_NAMES, NR

from . import scalar
from .host import AVX2, SCALAR, Bytes, Int16s, Int32s, Int64s, array, available_isas, jit
from .registry import MAX_MR, NARROW, best_tile

TILES = np.array(
    [
        [
            [[best_tile(isa, layout, nr, left) for left in range(MAX_MR + 1)] for nr in (NARROW, NR)]
            for layout in range(len(LAYOUT_NAMES))
        ]
        for isa in (SCALAR, AVX2)
    ]
)
"""Rows and columns of the next tile: by instruction set, layout, whether the panel is not narrow, and rows left."""

if AVX2 in available_isas():
    from . import avx2

    _run_avx2: Any = avx2.run
else:
    _run_avx2 = scalar.run  # a name for the compiler: the instruction set is never chosen here


@jit(
    types.void(
        types.int64,
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
    columns: int,
    data: Bytes,
    words: Int16s,
    rows: Int64s,
    offsets: Int32s,
    weights: Bytes,
    acc: Int32s,
) -> None:
    """Add to the first `columns` columns of acc, int32 [len(rows), 16], the sums of one segment, modulo 2^32.

        pairs   acc[r, c] += sum over s of words[rows[r] + offsets[s] + 0..3] . w[s, 0..3, c]
        quads   acc[r, c] += sum over s of data[rows[r] + offsets[s] + 0..3] . w[s, 0..3, c]
        TAPS16  acc[r, c] += sum over s of data[rows[r] + offsets[s] + c] * w[s, c]

    data: activations as uint8; words: the same as int16; either is empty when no segment needs it. rows int64
    positions, offsets int32 [steps], weights uint8, from the start of the segment on. Nothing is checked. The other
    columns of acc may change. TAPS16
    reads 16 elements at each position, however few columns count.
    """
    first = 0
    while first < len(rows):
        mr, nr = TILES[isa, layout, int(columns > NARROW), min(len(rows) - first, MAX_MR)]
        if isa == AVX2:
            _run_avx2(layout, mr, nr, data, words, rows[first:], offsets, weights, acc[first:])
        else:
            scalar.run(layout, mr, nr, data, words, rows[first:], offsets, weights, acc[first:])
        first += mr
