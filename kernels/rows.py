"""From arrays of activations to the rows that the loop nest reads: bytes, or the same widened to int16, padded."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from pyq.lowering import SLACK, ConvPlace, above_amax, activation_shift, reads_exactly
from pyq.packing import PackedWeight
from pyq.panels import WORDS

from .host import Bytes, Int16s, array, inlined, jit

Three = tuple[int, int, int]
_NO_BYTES, _NO_WORDS = np.empty(0, np.uint8), np.empty(0, np.int16)


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


@inlined()
def _convert(x: Bytes, first: int, count: int, shift: int, out: NDArray[Any], to: int) -> Any:
    """Shift bytes modulo 256, into out; their maximum."""
    source, target = x[first : first + count], out[to : to + count]
    highest = np.uint8(0)
    for i in range(count):
        value = np.uint8(source[i] + shift)
        highest = value if value > highest else highest
        target[i] = value
    return highest


@inlined()
def _pad(
    x: Bytes,
    images: int,
    size: Three,
    begin: Three,
    end: Three,
    channels: int,
    shift: int,
    zero: int,
    out: NDArray[Any],
) -> Any:
    """Shift images [N, *size, channels], with padding of value `zero` around each, into out; the images' maximum."""
    highest = np.uint8(0)
    inner = size[2] * channels
    depth, height = begin[0] + size[0] + end[0], begin[1] + size[1] + end[1]
    line = (begin[2] + size[2] + end[2]) * channels
    if (depth, height, line) == (size[0], size[1], inner):
        return _convert(x, 0, len(x), shift, out, 0)
    for i in range(images * depth * height):
        d, h = i // height % depth - begin[0], i % height - begin[1]
        left, right = i * line + begin[2] * channels, (i + 1) * line - end[2] * channels
        if 0 <= d < size[0] and 0 <= h < size[1]:
            out[i * line : left] = zero
            at = ((i // height // depth * size[0] + d) * size[1] + h) * inner
            highest = max(highest, _convert(x, at, inner, shift, out, left))
            out[right : (i + 1) * line] = zero
        else:
            out[i * line : (i + 1) * line] = zero
    return highest


@jit(
    types.int64(
        array(types.uint8),
        types.int64,
        *(types.UniTuple(types.int64, 3),) * 3,
        *(types.int64,) * 3,
        types.Array(types.uint8, 1, "C"),
        types.Array(types.int16, 1, "C"),
    )
)
def pad_images(
    x: Bytes,
    images: int,
    size: Three,
    begin: Three,
    end: Three,
    channels: int,
    shift: int,
    zero: int,
    data: Bytes,
    words: Int16s,
) -> Any:
    """Copy images with padding into data and into words, unless these are empty; the largest shifted byte."""
    highest = np.uint8(0)
    if len(words):
        highest = _pad(x, images, size, begin, end, channels, shift, zero, words)
    if len(data):
        highest = _pad(x, images, size, begin, end, channels, shift, zero, data)
    if not len(words) and not len(data):
        for value in x:
            highest = max(highest, value)
    return highest


def matrix_rows(x: NDArray[Any], w: PackedWeight) -> Rows:
    """Rows of a matrix [M, K], taken as M images of one pixel."""
    place = ConvPlace((1, 1, 1), (0, 0, 0), (0, 0, 0), (1, 1, 1), (1, 1, 1), w.offsets())
    return image_rows(x, w, place, 0)


def image_rows(x: NDArray[Any], w: PackedWeight, place: ConvPlace, zero: int) -> Rows:
    """Rows of contiguous images [N, *spatial, C]: the first pixel under the kernel. Padding has the value `zero`.

    Images that need no copy stay where they are. ValueError when an activation is above what `w` was packed for.
    """
    shift = activation_shift(x.dtype, w.amax)
    count, channels = x.shape[0], x.shape[-1]
    depth, height, width = (b + s + e for b, s, e in zip(place.begin, place.size, place.end, strict=True))
    line = width * channels
    plane = height * line
    total = count * depth * plane
    in_place = not shift and (depth, height, width) == place.size and reads_exactly(w, channels)
    flat = x.reshape(-1).view(np.uint8)
    data = _scratch("data", total, np.uint8) if w.layouts - WORDS and not in_place else _NO_BYTES
    words = _scratch("words", total, np.int16) if w.layouts & WORDS else _NO_WORDS
    if len(data) or len(words) or w.amax < 255:
        highest = pad_images(flat, count, place.size, place.begin, place.end, channels, shift, zero, data, words)
        if highest > w.amax:
            raise above_amax(x, w)
    moves = (plane * place.stride[0], line * place.stride[1], channels * place.stride[2])
    return Rows(flat if in_place else data, words, (count, *place.out_size), (depth * plane, *moves))
