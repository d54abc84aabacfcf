"""From arrays of activations to the rows that the loop nest reads: bytes, or the same widened to int16, padded."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from pyq.lowering import SLACK, ConvPlace, above_amax, activation_shift
from pyq.packing import PackedWeight
from pyq.panels import WORDS

from .host import Bytes, Int16s, array, inlined, jit

Three = tuple[int, int, int]
_NO_BYTES, _NO_WORDS = np.empty(0, np.uint8), np.empty(0, np.int16)


class Activations(NamedTuple):
    """How activations [N, *size, channels] become what the kernels read; made once for a weight and a shape.

    shift: added to each byte, modulo 256; zero: what padding is then. in_place: they stay where they are; data, words:
    whether they are copied as bytes, as int16. elements: of a padded image.
    """

    size: Three
    begin: Three
    end: Three
    channels: int
    shift: int
    zero: int
    in_place: bool
    data: bool
    words: bool
    elements: int

    @staticmethod
    def of(x: NDArray[Any], w: PackedWeight, place: ConvPlace, zero: int, exact: bool) -> Activations:
        """Images like x, for the layouts of `w`. exact: nothing behind them is read."""
        shift, channels = activation_shift(x.dtype, w.amax), x.shape[-1]
        padded = any((*place.begin, *place.end))
        in_place = bool(w.layouts - WORDS) and exact and not padded and not shift
        elements = channels * math.prod(b + s + e for b, s, e in zip(place.begin, place.size, place.end, strict=True))
        copied = bool(w.layouts - WORDS) and not in_place, bool(w.layouts & WORDS)
        return Activations(*place[:3], channels, shift, zero, in_place, *copied, elements)

    def read(self, x: NDArray[Any], w: PackedWeight) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
        """The contiguous x as bytes, and as words; ValueError when one of them is above what `w` was packed for.

        What is copied is valid until this thread's next call.
        """
        flat = x.reshape(-1).view(np.uint8)
        data = _scratch("data", len(x) * self.elements, np.uint8) if self.data else _NO_BYTES
        words = _scratch("words", len(x) * self.elements, np.int16) if self.words else _NO_WORDS
        if self.data or self.words or w.amax < 255:
            place = self.size, self.begin, self.end, self.channels
            if pad_images(flat, len(x), *place, self.shift, self.zero, data, words) > w.amax:
                raise above_amax(x, w)
        return flat if self.in_place else data, words


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
