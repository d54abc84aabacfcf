"""The loop nest of matrix product, convolution and depthwise convolution: only numbers and panels differ.

Output row m = (n, h, w) reads the activations from n * stride_n + h * stride_h + w * stride_w on, and each step of a
panel adds its offset: no im2col. What a block of rows reads stays in the L2 cache while all panels pass by.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from pyq.panels import NR, PANEL_DTYPE

from .epilogue import ARGUMENTS, finish_rows
from .host import Bytes, Floats, Int16s, Int32s, Int64s, array, jit
from .tile import tiles

ROWS = 192
"""Rows of a block: at K = 512, 96 KiB of bytes or 192 KiB of words; and 12 KiB of sums."""


@jit()
def _row_starts(rows: Int64s, begin: int, height: int, width: int, stride_n: int, stride_h: int, stride_w: int) -> None:
    """Positions in the activations of the output rows from `begin` on."""
    for r in range(len(rows)):
        line, w = divmod(begin + r, width)
        n, h = divmod(line, height)
        rows[r] = n * stride_n + h * stride_h + w * stride_w


@jit(
    types.void(
        types.int64,
        array(types.uint8),
        array(types.int16),
        *(types.int64,) * 6,
        array(types.int32),
        array(numba.from_dtype(PANEL_DTYPE)),
        array(types.uint8),
        *ARGUMENTS,
    )
)
def gemm(
    isa: int,
    data: Bytes,
    words: Int16s,
    images: int,
    height: int,
    width: int,
    stride_n: int,
    stride_h: int,
    stride_w: int,
    offsets: Int32s,
    panels: NDArray[Any],
    weights: Bytes,
    kind: int,
    bias: Int32s,
    multiplier: Floats,
    offset: Floats,
    zero_point: int,
    low: float,
    high: float,
    table: Bytes,
    out: Bytes,
) -> None:
    """Fill out [images * height * width, N]: the sums of `tiles`, finished as told in `epilogue`.

    data uint8, words int16: the activations, as `tiles` wants them; offsets int32: those of all panels.
    """
    rows = np.empty(ROWS, np.int64)
    acc = np.empty((ROWS, NR), np.int32)
    total = images * height * width
    for begin in range(0, total, ROWS):
        count = min(ROWS, total - begin)
        _row_starts(rows[:count], begin, height, width, stride_n, stride_h, stride_w)
        for panel in panels:
            group_data, group_words = data[panel.row_offset :], words[panel.row_offset :]
            steps = offsets[panel.order : panel.order + panel.steps]
            tiles(isa, panel.layout, group_data, group_words, rows[:count], steps, weights[panel.data :], acc)
            finish_rows(
                acc[:count],
                begin,
                panel.column,
                panel.columns,
                kind,
                bias,
                multiplier,
                offset,
                zero_point,
                low,
                high,
                table,
                out,
            )
