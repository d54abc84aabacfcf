"""Products as they are kept by a weight: prepared with all that they need but activations and output.

Of a small product every look-up of a name counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq import windows
from pyq.kernel_backend import Product
from pyq.lowering import ConvPlace, reads_exactly
from pyq.packing import PackedWeight
from pyq.panels import NR

from . import depthwise, gemm
from .epilogue import Epilogue
from .host import permutes_bytes
from .rows import Activations

_NO_BYTES = np.empty(0, np.uint8)


def as_bytes(array: NDArray[Any] | None) -> NDArray[np.uint8]:
    """The bytes of an array; none of None."""
    return _NO_BYTES if array is None else array.reshape(-1).view(np.uint8)


def product(isa: int, x: NDArray[Any], w: PackedWeight, place: ConvPlace, zero: int, epilogue: Epilogue) -> Product:
    """By `gemm.gemm`, of activations like x, padded with `zero`."""
    channels = x.shape[-1]
    activations = Activations.of(x, w, place, zero, reads_exactly(w, channels))
    _, height, width = (b + s + e for b, s, e in zip(place.begin, place.size, place.end, strict=True))
    line = width * channels
    plane, out_size = height * line, place.out_size
    moves = plane * place.stride[0], line * place.stride[1], channels * place.stride[2]
    strides = activations.elements, *moves

    def call(x: NDArray[Any], w: PackedWeight, out: NDArray[Any], residual: NDArray[Any] | None) -> None:
        rows = *activations.read(x, w), (len(x), *out_size), strides, place.offsets
        scratch = np.empty(gemm.BLOCK, np.int64), np.empty((2 * gemm.TILE_ROWS, NR), np.int32)
        gemm.gemm(isa, *rows, w.segments, w.data, *scratch, epilogue, as_bytes(residual), as_bytes(out))

    return call


def depthwise_layer(
    isa: int, x: NDArray[Any], w: PackedWeight, place: ConvPlace, zero: int, taps: NDArray[np.int16], epilogue: Epilogue
) -> Product:
    """By `depthwise.depthwise`, of images like x, padded with `zero`."""
    unpadded = place._replace(begin=(0, 0, 0), end=(0, 0, 0))
    activations = Activations.of(x, w, unpadded, zero, exact=True)
    quads = windows.quads_for(w) if permutes_bytes(isa) else None
    flat = (taps if quads is None else quads).reshape(-1).view(np.int16)
    side, channels, kind = w.kernel_shape[2], x.shape[-1], int(quads is not None)
    zeros, image = np.full(channels, zero, np.uint8), (*place.size[1:], channels)
    moves = place.begin[1:], place.stride[1:], place.dilation[1:], place.out_size[1:]

    def call(x: NDArray[Any], w: PackedWeight, out: NDArray[Any], residual: NDArray[Any] | None) -> None:
        images, _ = activations.read(x, w)
        pixels = np.empty(side * windows.PITCH, np.int64)
        size = len(x), *image
        depthwise.depthwise(isa, kind, side, images, zeros, size, *moves, pixels, flat, epilogue, as_bytes(out))

    return call
