"""The tiles of one segment: the microkernel contract, and the choice of the microkernel (`registry` lists them)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from pyq.panels import LAYOUT_NAMES, NR

from . import microkernel, scalar
from .host import ISAS, SCALAR, Bytes, Int16s, Int32s, Int64s, array, jit
from .registry import MAX_MR, MICROKERNELS, NARROW, PAIR, best_tile

CHOICE = np.array(
    [
        [
            [[best_tile(isa, layout, columns, left) for left in range(1, MAX_MR + 1)] for columns in (NARROW, NR, PAIR)]
            for layout in range(len(LAYOUT_NAMES))
        ]
        for isa in ISAS
    ]
)
"""Number in `MICROKERNELS` of the next tile: by instruction set, layout, whether a panel is narrow (0), whole (1) or
one of two (2), and rows left (less 1)."""

HEIGHTS = np.array([kernel.mr for kernel in MICROKERNELS])
GROUP = np.where(HEIGHTS[CHOICE[:, :, 1, -1]] == 8, 16, 12)
"""Rows after which there are no tails, by instruction set and layout: of kernels of up to 8 rows, or of 4 and 6."""
IS_SCALAR = np.array([kernel.isa == SCALAR for kernel in MICROKERNELS])

_run: Any = microkernel.run


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

    With more than 16 columns, for which not all layouts have kernels: of two panels, to acc [len(rows), 32].

        pairs   acc[r, c] += sum over s of words[rows[r] + offsets[s] + 0..3] . w[s, 0..3, c]
        quads   acc[r, c] += sum over s of data[rows[r] + offsets[s] + 0..3] . w[s, 0..3, c]
        TAPS16  acc[r, c] += sum over s of data[rows[r] + offsets[s] + c] * w[s, c]

    data: activations as uint8; words: the same as int16; either is empty when no segment needs it. rows int64
    positions, offsets int32 [steps], weights uint8, from the start of the segment on. Nothing is checked. The other
    columns of acc may change. TAPS16 reads 16 elements at each position, however few columns count.
    """
    choice = CHOICE[isa, layout, int(columns > NARROW) + int(columns > NR)]
    first = 0
    while first < len(rows):
        left = len(rows) - first
        kernel = choice[min(left, MAX_MR) - 1]
        count = left // HEIGHTS[kernel]
        if IS_SCALAR[kernel]:
            scalar.run(layout, data, words, rows[first:], offsets, weights, acc[first:])
        else:
            _run(kernel, count, data, words, rows[first:], offsets, weights, acc[first:])
        first += count * HEIGHTS[kernel]
