"""A straight line in fixed point through given integers: how sums of bytes become averages without a division."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NONE = (0, 0, 0, 0)
"""No line."""

_ADDENDS = np.arange(4096)  # of which nearly always one gives an offset near enough to what is needed


def fixed_point(wanted: NDArray[np.int64], slope: float) -> tuple[int, int, int, int]:
    """Numbers (factor, addend, offset, bits), as ``pyq_fixed_mean`` in csrc/pyq.h uses them, or `NONE`.

    They give ``wanted[s]``, integers of 8 bits that do not decrease, for every s; the slope of the line is about
    ``slope``, before it saturates. All are tried before they are returned.

    >>> fixed_point(np.rint(np.arange(10) / 3).astype(np.int64), 1 / 3)
    (5592406, 0, 86, 8)
    """
    steps = np.arange(wanted[0] + 1, wanted[-1] + 1)
    least = np.searchsorted(wanted, steps)  # the first s that reaches each step
    addends = _ADDENDS[: 2**16 - len(wanted)]
    for bits in range(8, 3, -1):  # fewer, where the line leads beyond 8 bits before it saturates
        one = 1 << 16 + bits
        if not (0.5 <= slope * one < 2**31 and len(steps)):
            continue
        for factor in (round(slope * one) + np.array([0, -1, 1])).tolist():
            lowest = (steps * one - factor * least).max()  # the line's value at 0: from here to below `limit`
            limit = (steps * one - factor * (least - 1)).min()
            offsets = -((factor * addends - lowest) >> 16)
            fits = factor * addends + (offsets << 16) < limit
            best = int(fits.argmax())
            numbers = factor, int(addends[best]), int(offsets[best]) % 2**16, bits
            if fits[best] and np.array_equal(_line(len(wanted), *numbers, wanted[-1]), wanted):
                return numbers
    return NONE


def _line(count: int, factor: int, addend: int, offset: int, bits: int, highest: int) -> NDArray[np.int64]:
    """What ``csrc/x86/avx2_average.h`` computes for s from 0 to ``count`` - 1."""
    words = ((np.arange(count) + addend) * factor >> 16) + offset
    return np.minimum(np.clip(words.astype(np.int16) >> bits, -128, 127), highest).astype(np.int64)
