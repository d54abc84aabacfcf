"""Depthwise convolution of the usual kernels: 3x3, 5x5, 7x7, strides 1 and 2 along a line; twin of csrc/depthwise.c.

A microkernel (`window`) is given the address of every input pixel under a few neighbouring output pixels; a pixel
outside the image has the address of a line of zero points: nothing is padded or copied. Dilation along a line: a turn
for each remainder of the output pixel's number. All other depthwise convolutions are those of `gemm`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from pyq import windows

from . import window as functions
from .elementwise import lookup
from .epilogue import EPILOGUE, OUT, QUANTIZED, Epilogue
from .host import ISAS, Bytes, Int16s, Int64s, array, inlined, jit
from .registry import MAX_WINDOW, WINDOWS, best_window

RUN = 32
"""Output pixels whose input pixels' addresses are made at once: PITCH >= (RUN - 1) * 2 + 7."""

CHOICE = np.array(
    [
        best_window(isa, side, stride, left, quads)
        for quads in (False, True)
        for isa in ISAS
        for side in windows.KERNELS
        for stride in windows.STRIDES
        for left in range(1, MAX_WINDOW + 1)
    ]
).reshape(2, len(ISAS), len(windows.KERNELS), len(windows.STRIDES), MAX_WINDOW)
"""Number in `WINDOWS` of the next tile: by kind of weights (pairs, quads), instruction set, kernel, stride, and output
pixels left (less 1)."""

HEIGHTS = np.array([row.mr for row in WINDOWS])

Two = tuple[int, int]
Four = tuple[int, int, int, int]


_microkernel: Any = functions.run


@inlined()
def _window(
    row: int, pixels: Int64s, weights: Int16s, channels: int, apart: int, epilogue: Epilogue, out: Bytes
) -> None:
    kind, bias, multiplier, offset, zero_point, low, high, _, _ = epilogue
    _microkernel(row, pixels, weights, channels, apart, kind, bias, multiplier, offset, zero_point, low, high, out)


@jit()
def window(
    row: int, pixels: Int64s, weights: Int16s, channels: int, apart: int, epilogue: Epilogue, out: Bytes
) -> None:
    """Fill the first [mr, channels] of out, lines `apart` elements apart, by number `row` of `registry.WINDOWS`.

    pixels: the addresses of the input pixels, each `channels` bytes; number i of line r at [r * PITCH + i]. weights: of
    `windows.window_weights`, or, as int16, of `windows.window_quads`. The epilogue's table and residual are ignored.
    Nothing is checked. Compiled when first called: `depthwise` has the microkernels in line.
    """
    _window(row, pixels, weights, channels, apart, epilogue, out)


@jit()
def _gather(
    images: int,
    zeros: int,
    size: Four,
    dilation: Two,
    line: int,
    lines: int,
    first: int,
    count: int,
    image: int,
    pixels: Int64s,
) -> None:
    """Addresses of `count` input pixels, as far apart as the kernel's own, from column `first` and `line` on."""
    begin = min(max(-(first // dilation[1]), 0), count)
    end = min(max(-((first - size[2]) // dilation[1]), begin), count)
    for r in range(lines):
        y = line + r * dilation[0]
        inside = 0 <= y < size[1]
        start = images + ((image * size[1] + y) * size[2] + first) * size[3] if inside else zeros
        step = dilation[1] * size[3] if inside else 0
        row = pixels[r * windows.PITCH : r * windows.PITCH + count]
        row[:begin] = zeros
        for i in range(begin, end):
            row[i] = start + i * step
        row[end:] = zeros


@jit(
    types.void(
        *(types.int64,) * 3,
        array(types.uint8),
        array(types.uint8),
        types.UniTuple(types.int64, 4),
        *(types.UniTuple(types.int64, 2),) * 4,
        types.Array(types.int64, 1, "C"),
        array(types.int16),
        EPILOGUE,
        OUT,
    )
)
def depthwise(
    isa: int,
    quads: int,
    side: int,
    images: Bytes,
    zeros: Bytes,
    size: Four,
    begin: Two,
    stride: Two,
    dilation: Two,
    out_size: Two,
    pixels: Int64s,
    weights: Int16s,
    epilogue: Epilogue,
    out: Bytes,
) -> None:
    """Fill out [N, *out_size, C] from images [N, H, W, C], whose shape is `size`: shifted to uint8.

    quads: whether the weights are. zeros: C bytes of the shifted zero point; begin: pads; pixels: room for `side` lines
    of addresses.
    """
    choice = CHOICE[quads, isa, (side - windows.KERNELS[0]) // 2, stride[1] - 1]
    pixel = size[3] * (1 if epilogue[0] == QUANTIZED else 4)
    first, none, apart = images.ctypes.data, zeros.ctypes.data, dilation[1]
    line_bytes = out_size[1] * pixel
    for line in range(size[0] * out_size[0]):
        n, h = divmod(line, out_size[0])
        row, top = out[line * line_bytes : (line + 1) * line_bytes], h * stride[0] - begin[0]
        for turn in range(min(apart, out_size[1])):
            for x in range(turn, out_size[1], RUN * apart):
                count = min(-((x - out_size[1]) // apart), RUN)
                reach = (count - 1) * stride[1] + side
                _gather(first, none, size, dilation, top, side, x * stride[1] - begin[1], reach, n, pixels)
                i = 0
                while i < count:
                    kernel = choice[min(count - i, MAX_WINDOW) - 1]
                    to = row[(x + i * apart) * pixel :]
                    _window(kernel, pixels[i * stride[1] :], weights, size[3], apart * size[3], epilogue, to)
                    i += HEIGHTS[kernel]
        if len(epilogue[7]):
            lookup(row, epilogue[7], row)
