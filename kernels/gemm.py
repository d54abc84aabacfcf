"""The loop nest of matrix product, convolution and depthwise convolution: they differ by numbers and panels only.

Output row m = (n, h, w) reads the base buffer from n * stride_n + h * stride_h + w * stride_w, and each
step of a panel adds its offset: no im2col. Blocks of rows keep what they read in the L2 cache while all panels pass by.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

from pyq.panels import NR, PANEL_DTYPE

from .epilogue import ARGUMENTS, OUTPUTS, finish
from .host import array, jit
from .tile import tiles

ROWS = 96
"""Rows of a block: 48 KiB of activations at K = 512, and 6 KiB of sums."""


@jit()
def _row_starts(rows, begin, height, width, stride_n, stride_h, stride_w):  # type: ignore[no-untyped-def]
    """Byte positions of the output rows from `begin` on."""
    for r in range(len(rows)):
        line, w = divmod(begin + r, width)
        n, h = divmod(line, height)
        rows[r] = n * stride_n + h * stride_h + w * stride_w


@jit()
def _finish_rows(acc, out, begin, column, columns, bias, multiplier, offset, zero_point, low, high, table):  # type: ignore[no-untyped-def]
    """Rows begin, begin + 1, ... of out, in the columns of one panel."""
    end = column + columns
    for r in range(len(acc)):
        row = out[begin + r]
        finish(
            acc[r, :columns], row[column:end], bias[column:end], multiplier[column:end], offset[column:end],
            zero_point, low, high, table,
        )  # fmt: skip


@jit(*(
    types.void(
        types.int64, array(types.uint8), types.int64, types.int64, types.int64, types.int64, types.int64,
        array(types.int32), array(numba.from_dtype(PANEL_DTYPE)), array(types.uint8), *ARGUMENTS, out,
    )
    for out in OUTPUTS
))  # fmt: skip
def gemm(  # type: ignore[no-untyped-def]
    isa, base, height, width, stride_n, stride_h, stride_w, offsets, panels, data,
    bias, multiplier, offset, zero_point, low, high, table, out,
):  # fmt: skip
    """Fill out [images * height * width, N]; see `tiles` for the sums and `epilogue` for what becomes of them."""
    rows = np.empty(ROWS, np.int64)
    acc = np.empty((ROWS, NR), np.int32)
    for begin in range(0, len(out), ROWS):
        count = min(ROWS, len(out) - begin)
        _row_starts(rows[:count], begin, height, width, stride_n, stride_h, stride_w)
        for panel in panels:
            steps = offsets[panel.order : panel.order + panel.steps]
            shifted, weights = base[panel.row_offset :], data[panel.data :]
            tiles(isa, panel.layout, shifted, rows[:count], steps, weights, acc)
            _finish_rows(
                acc[:count], out, begin, panel.column, panel.columns,
                bias, multiplier, offset, zero_point, low, high, table,
            )  # fmt: skip


@jit(*(types.void(array(types.int32, 2), *ARGUMENTS, out) for out in OUTPUTS))
def requantize(acc, bias, multiplier, offset, zero_point, low, high, table, out):  # type: ignore[no-untyped-def]
    """The epilogue alone: out [M, N] from sums [M, N]."""
    _finish_rows(acc, out, 0, 0, out.shape[1], bias, multiplier, offset, zero_point, low, high, table)
