"""A straight line in fixed point through given integers: how sums of bytes become averages without a division."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

FIXED_MEAN = np.dtype(
    [("factor", "u4"), ("addend", "u4"), ("offset", "u4"), ("bits", "u4"), ("halves", "u4"), ("down", "u1", 32)]
)
"""``pyq_fixed_mean`` in csrc/pyq.h, which says what the fields mean. All 0: no line."""

_ADDENDS = np.arange(4096)  # of which nearly always one gives an offset near enough to what is needed


def fixed_mean(wanted: NDArray[np.int64], slope: float, highest: int = 127) -> NDArray[Any]:
    """A `FIXED_MEAN`, 0-d, that gives ``wanted[s]``, integers of 8 bits that do not decrease, for every s.

    slope: of the line, about, where it does not saturate, at -128 and ``highest``. Numbers are tried with every s
    before they are returned.

    >>> fixed_mean(np.rint(np.arange(10) / 3).astype(np.int64), 1 / 3)["factor"]
    array(5592405, dtype=uint32)
    """
    for bits in range(8, 3, -1):  # fewer, where the line leads beyond 8 bits before it saturates
        for mean in (*_lines(wanted, slope, bits, highest), *_lines_of_halves(wanted, slope, bits)):
            if np.array_equal(evaluate(mean, len(wanted), highest), wanted):
                return mean
    return np.zeros((), FIXED_MEAN)


def evaluate(mean: NDArray[Any], count: int, highest: int) -> NDArray[np.int64]:
    """What ``csrc/x86/avx2_average.h`` computes for s from 0 to ``count`` - 1."""
    factor, addend, offset, bits = (int(mean[name]) for name in ("factor", "addend", "offset", "bits"))
    words = (((np.arange(count) + addend) * factor >> 16) + offset).astype(np.int16)
    integers = np.clip(words >> bits, -128, 127)
    if mean["halves"]:
        at_half = words & ((1 << bits) - 1) == 0
        integers -= at_half & np.unpackbits(mean["down"], bitorder="little")[integers & 255]
    return np.minimum(integers, highest).astype(np.int64)


def _lines(wanted: NDArray[np.int64], slope: float, bits: int, highest: int) -> list[NDArray[Any]]:
    reached = np.arange(max(wanted[0], -127), wanted[-1] + 1)
    missed = np.arange(wanted[0] + 1, min(wanted[-1] + 1, highest) + 1)
    one = 1 << 16 + bits
    if not (0.5 <= slope * one < 2**31 and len(reached) and len(missed)):
        return []
    first, last = np.searchsorted(wanted, reached), np.searchsorted(wanted, missed) - 1  # s that does, s that does not
    addends = _ADDENDS[: 2**16 - len(wanted)]
    found = []
    for factor in (round(slope * one) + np.array([0, -1, 1])).tolist():
        lowest = (reached * one - factor * first).max()  # the line's value at 0: from here to below `limit`
        limit = (missed * one - factor * last).min()
        offsets = -((factor * addends - lowest) >> 16)
        fits = factor * addends + (offsets << 16) < limit
        if fits.any():
            best = fits.argmax()
            found.append(_mean(factor, addends[best], offsets[best], bits))
    return found


def _lines_of_halves(wanted: NDArray[np.int64], slope: float, bits: int) -> list[NDArray[Any]]:
    """Lines of slope 1 / n, n a power of two, that reach an integer where wanted is a half, rounded up or down."""
    n = round(1 / slope)
    if n < 2 or n * slope != 1 or n & (n - 1) or n > 1 << bits:
        return []
    middle = len(wanted) // 2
    found = []
    for start in wanted[middle] * n - middle + np.arange(n + 1):
        sums = np.arange(len(wanted)) + start
        above = np.clip(sums // n, -128, 127) - wanted
        at_half = sums % n == 0
        if not (np.isin(above, (0, 1)).all() and at_half[above == 1].all()):
            continue
        mean = _mean(2 ** (16 + bits) // n, start % n, start // n << bits, bits)
        down = np.zeros(256, np.bool_)
        down[(sums // n)[above == 1] & 255] = True
        mean["halves"], mean["down"] = 1, np.packbits(down, bitorder="little")
        found.append(mean)
    return found


def _mean(factor: int, addend: int, offset: int, bits: int) -> NDArray[Any]:
    return np.array((factor, addend, offset % 2**16, bits, 0, 0), FIXED_MEAN)
