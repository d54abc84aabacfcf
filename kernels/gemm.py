"""The loop nest of matrix product, convolution and depthwise convolution: only numbers and panels differ.

Output row m = (n, d, h, w) reads the activations from the sum of these times their strides on, and each step of a
segment adds its offset: no im2col. What a block of rows reads stays in the L2 cache while all panels pass by; the sums
of a group of rows stay in the L1 cache until its epilogue.
"""

from __future__ import annotations

from typing import Any

import numba
from numba import types
from numpy.typing import NDArray

from pyq.panels import NR, QUADS32, SEGMENT_DTYPE, STEP_BYTES

from .epilogue import EPILOGUE, OUT, RESIDUAL, Epilogue, finish_columns
from .host import Bytes, Int16s, Int32s, Int64s, array, jit
from .registry import PAIR
from .tile import CHOICE, GROUP, tiles

TILE_ROWS = 48
"""Rows, at most, of which the epilogue is run at once: a multiple of all groups, so that only the last has tails."""
BLOCK = 4 * TILE_ROWS
"""Rows of a block: at K = 512, 96 KiB of bytes or 192 KiB of words."""
TILE_BYTES = 6 << 10
"""What these read of the activations, at most, so that it fits the L1 cache beside the weights."""

LONG_PANEL = 1024
"""Steps from which on one row reads two panels faster than one after the other."""

Four = tuple[int, int, int, int]


@jit()
def _row_starts(rows: Int64s, begin: int, size: Four, strides: Four) -> None:
    """Positions in the activations of the output rows from `begin` on: line by line, as divisions cost most."""
    line, w = divmod(begin, size[3])
    r = 0
    while r < len(rows):
        plane, h = divmod(line, size[2])
        n, d = divmod(plane, size[1])
        at = n * strides[0] + d * strides[1] + h * strides[2] + w * strides[3]
        run = min(size[3] - w, len(rows) - r)
        for i in range(run):
            rows[r + i] = at + i * strides[3]
        r += run
        line, w = line + 1, 0


@jit()
def _panel_end(segments: NDArray[Any], first: int) -> int:
    """Where the segments of the panel that begins at `first` end."""
    end = first + 1
    while end < len(segments) and segments[end].column == segments[first].column:
        end += 1
    return end


@jit()
def _are_a_pair(isa: int, segments: NDArray[Any], first: int) -> bool:
    """Whether one kernel computes the panel of one segment at `first` and the next: csrc/gemm.c says why."""
    end = _panel_end(segments, first)
    if end != first + 1 or end == len(segments) or _panel_end(segments, end) != end + 1:
        return False
    a, b = segments[first], segments[end]
    return (
        CHOICE[isa, a.layout, 2, 0] >= 0
        and a.layout == b.layout
        and a.steps == b.steps
        and a.order == b.order
        and a.row_offset == b.row_offset
        and b.column == a.column + NR
        and b.data == a.data + a.steps * STEP_BYTES[QUADS32]
    )


@jit()
def _tile_rows(isa: int, segments: NDArray[Any]) -> int:
    """Rows to compute at once, in whole groups: the more, the fewer products make a sum."""
    steps, group = 0, 1
    for segment in segments[: _panel_end(segments, 0)]:
        steps += segment.steps
        group = max(group, GROUP[isa, segment.layout])
    return group * max(1, min(TILE_ROWS // group, TILE_BYTES // (4 * steps * group + 1)))


@jit(
    types.void(
        types.int64,
        array(types.uint8),
        array(types.int16),
        types.UniTuple(types.int64, 4),
        types.UniTuple(types.int64, 4),
        array(types.int32),
        array(numba.from_dtype(SEGMENT_DTYPE)),
        array(types.uint8),
        types.Array(types.int64, 1, "C"),
        types.Array(types.int32, 2, "C"),
        EPILOGUE,
        RESIDUAL,
        OUT,
    )
)
def gemm(
    isa: int,
    data: Bytes,
    words: Int16s,
    size: Four,
    strides: Four,
    offsets: Int32s,
    segments: NDArray[Any],
    weights: Bytes,
    rows: Int64s,
    acc: Int32s,
    epilogue: Epilogue,
    residual: Bytes,
    out: Bytes,
) -> None:
    """Fill out [images * depth * height * width, N]: the sums of `tiles`, finished as told in `epilogue`.

    data uint8, words int16: the activations, as `tiles` wants them; size: images, depth, height and width of the
    output, strides: the elements from one of each to the next; offsets int32: those of all segments.
    """
    ends = epilogue, residual, out
    total = size[0] * size[1] * size[2] * size[3]
    tile_rows = _tile_rows(isa, segments)
    for block in range(0, total, BLOCK):
        count = min(BLOCK, total - block)
        _row_starts(rows[:count], block, size, strides)
        first = 0
        while first < len(segments):
            end = _panel_end(segments, first)
            pair = (total > 1 or segments[first].steps >= LONG_PANEL) and _are_a_pair(isa, segments, first)
            columns = PAIR if pair else segments[first].columns
            sums = acc.reshape((-1, PAIR)) if pair else acc
            for i in range(0, count, tile_rows):
                group = rows[i : min(i + tile_rows, count)]
                sums[: len(group)] = 0
                for segment in segments[first:end]:
                    order, base = segment.order, segment.row_offset
                    steps = offsets[order : order + segment.steps]
                    parts = steps, weights[segment.data :], sums
                    tiles(isa, segment.layout, columns, data[base:], words[base:], group, *parts)
                for n in range(1 + pair):
                    panel = segments[end if n else first]
                    finish_columns(sums[: len(group)], NR * n, block + i, panel.column, panel.columns, *ends)
            first = end + pair
