"""Where the windows of a pool lie in memory: what the C and the Numba backend share.

An image is rows of pixels, whatever its dimensions: the last spatial dimension runs along a row. For each row of the
output this lists the rows of the input that its windows cover, without the padding.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyq.geometry import Placement


class Windows(NamedTuple):
    """The windows of a pool; positions count elements.

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
