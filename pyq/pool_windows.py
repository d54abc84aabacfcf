"""Where the windows of a pool lie in memory: what the C and the Numba backend share.

An image is rows of pixels, whatever its dimensions: the last spatial dimension runs along a row. For each row of the
output this lists the rows of the input that its windows cover, without the padding.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pyq.fixed_point import FIXED_MEAN, fixed_mean
from pyq.geometry import Placement
from pyq.qparams import LIMITS, QParams, quantize_array

SMALL_WINDOW = 128
"""Elements whose sum fits 16 bits, zero points subtracted or not."""


class Windows(NamedTuple):
    """The windows of a pool; positions count elements. Compared by identity, since `windows` keeps them.

    A window in output row r covers input rows that begin at ``offsets[starts[r]:starts[r + 1]]``, and in output column
    c, of each such row, ``taps[c]`` pixels from ``firsts[c]`` on, ``step`` apart. counts: what the sums of an average
    pool are divided by, float32 [rows, columns]; the other arrays are int64.
    """

    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    firsts: NDArray[np.int64]
    taps: NDArray[np.int64]
    step: int
    counts: NDArray[np.float32]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@lru_cache(maxsize=256)
def windows(sizes: tuple[int, ...], channels: int, placement: Placement, include_pad: bool = False) -> Windows:
    """The windows of a pool of images ``[*sizes, channels]``; ``include_pad``: padding counts too."""
    begins = [np.arange(n) * s - p for n, s, p in zip(placement.out, placement.strides, placement.pads, strict=False)]
    offsets, inside = np.zeros((1, 1), np.int64), np.ones((1, 1), np.bool_)
    for axis, size in enumerate(sizes[:-1]):
        taps = begins[axis][:, None] + np.arange(placement.kernel[axis]) * placement.dilations[axis]
        shape = (len(offsets) * len(taps), -1)
        inside = (inside[:, None, :, None] & ((taps >= 0) & (taps < size))[:, None]).reshape(shape)
        distances = taps * prod(sizes[axis + 1 :]) * channels
        offsets = (offsets[:, None, :, None] + distances[:, None]).reshape(shape)
    starts = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    dilation = placement.dilations[-1]
    skipped = np.maximum(-begins[-1] + dilation - 1, 0) // dilation
    ends = np.minimum((sizes[-1] - begins[-1] + dilation - 1) // dilation, placement.kernel[-1])
    firsts = (begins[-1] + skipped * dilation) * channels
    counts = placement.counts(sizes, include_pad).reshape(len(offsets), -1).astype(np.float32)
    return Windows(starts, offsets[inside], firsts, ends - skipped, dilation * channels, counts)


def fixed_means(found: Windows, params: QParams, out: QParams) -> NDArray[Any]:
    """How sums become the averages of the numerics in fixed point: `FIXED_MEAN` [rows, columns].

    All 0 where windows are large, or no numbers are known that give the right integer for every sum that can be.
    """
    return _fixed_means(found, *(_fields(each) for each in (params, out)))


_Fields: TypeAlias = tuple[float, int, np.dtype[Any], int, int]


def _fields(params: QParams) -> _Fields:
    return float(params.scale), int(params.zero_point), params.dtype, params.qmin, params.qmax


@lru_cache(maxsize=256)
def _fixed_means(found: Windows, params: _Fields, out: _Fields) -> NDArray[Any]:
    elements = np.diff(found.starts)[:, None] * found.taps
    kinds = np.stack([elements.ravel(), found.counts.ravel()], axis=1)
    kinds, index = np.unique(kinds, axis=0, return_inverse=True)
    scale, zero_point, dtype, _, _ = params
    target = QParams(out[0], out[1], out[2], None, *out[3:])
    low, high = (int(bound) - zero_point for bound in LIMITS[dtype])
    values = np.zeros(len(kinds), FIXED_MEAN)
    for i, (size, count) in enumerate(kinds):
        if size <= SMALL_WINDOW:
            sums = np.arange(low * size, high * size + 1, dtype=np.float32)
            with np.errstate(over="ignore", under="ignore"):
                means = quantize_array(sums * np.float32(scale) / np.float32(count), target)
            wanted, highest = means.astype(np.int64) - target.qmin - 128, target.qmax - target.qmin - 128
            values[i] = fixed_mean(wanted, scale / (out[0] * count), highest)
    return values[index.reshape(-1)].reshape(elements.shape)
