"""From arrays of activations to the rows that the loop nest reads: bytes, or the same widened to int16, padded."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq.lowering import SLACK, ConvPlace, above_amax, activation_shift, reads_exactly
from pyq.packing import PackedWeight
from pyq.panels import WORDS


class Rows(NamedTuple):
    """Row (n, d, h, w) of the activations starts at the sum of these times `strides`, in elements.

    The elements lie in `data` as bytes, in `words` as int16; what no layout needs is empty. `size` is that of the
    output: images, depth, height, width.
    """

    data: NDArray[np.uint8]
    words: NDArray[np.int16]
    size: tuple[int, int, int, int]
    strides: tuple[int, int, int, int]


_thread = threading.local()


def _scratch(name: str, size: int, dtype: type) -> NDArray[Any]:
    """This thread's scratch buffer `name`, grown to `size` elements plus slack; valid until the next call."""
    buffer: NDArray[Any] | None = getattr(_thread, name, None)
    if buffer is None or len(buffer) < size + SLACK:
        buffer = np.zeros(size + SLACK, dtype)
        setattr(_thread, name, buffer)
    return buffer[: size + SLACK]


def matrix_rows(x: NDArray[Any], w: PackedWeight) -> Rows:
    """Rows of a matrix [M, K], taken as M images of one pixel."""
    place = ConvPlace((1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1), (1, 1, 1), w.offsets())
    return image_rows(x[:, None], w, place, 0)


def image_rows(x: NDArray[Any], w: PackedWeight, place: ConvPlace, zero: int) -> Rows:
    """Rows of images [N, *spatial, C]: the first pixel under the kernel. Padding, of value `zero`, is copied in once.

    ValueError when an activation is above what `w` was packed for.
    """
    shift = activation_shift(x.dtype, w.amax)
    if w.amax < 255 and x.size and not 0 <= int(x.min()) + shift <= int(x.max()) + shift <= w.amax:
        raise above_amax(x, w)
    n, c = x.shape[0], x.shape[-1]
    images = x.reshape(n, *place.size, c)
    depth, height, width = (b + s + e for b, s, e in zip(place.begin, place.size, place.end, strict=True))
    padded = (depth, height, width) != place.size
    usable = not shift and not padded and x.flags.c_contiguous and reads_exactly(w, c)

    def copied(name: str, dtype: type) -> NDArray[Any]:
        shape = (n, depth, height, width, c)
        buffer = _scratch(name, math.prod(shape), dtype)
        target = buffer[: math.prod(shape)].reshape(shape)
        if padded:
            target[:] = zero
        inner = tuple(slice(b, b + s) for b, s in zip(place.begin, place.size, strict=True))
        np.add(images, dtype(shift), out=target[(slice(None), *inner)], dtype=dtype, casting="unsafe")
        return buffer

    data, words = np.empty(0, np.uint8), np.empty(0, np.int16)
    if w.layouts - WORDS:
        data = x.reshape(-1) if usable else copied("data", np.uint8)
    if w.layouts & WORDS:
        words = copied("words", np.int16)
    line = width * c
    plane = height * line
    moves = (plane * place.stride[0], line * place.stride[1], c * place.stride[2])
    return Rows(data, words, (n, *place.out_size), (depth * plane, *moves))
