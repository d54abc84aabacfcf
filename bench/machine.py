"""What this core can do at most, measured: its clock, its multipliers, its memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from pyq.backends import ISA_NAMES, available_backends

REPETITIONS = 15
ITERATIONS = 100_000  # of a loop on registers: a millisecond or less
SCANNED = 1 << 28  # bytes: more than any cache holds


@dataclass(frozen=True)
class Machine:
    """Of one core: the clock in GHz, and GOP/s of the multipliers by instruction set; empty and None if not known.

    A multiply-accumulate counts as two operations. bandwidth: GB/s, read by as many threads as NumPy uses. with_sums:
    GOP/s of AVX2's multiplications of 16-bit pairs together with the additions that an exact sum of them needs.
    """

    ghz: float | None
    peaks: dict[str, float]
    bandwidth: float
    with_sums: float | None = None

    def peak(self, isa: str, threads: int) -> float | None:
        """GOP/s of `threads` cores."""
        return self.peaks[isa] * threads if isa in self.peaks else None


def measure_machine() -> Machine:
    """The best of a few repetitions each; a fraction of a second.

    The peak of an instruction set is its widest multiplication, repeated on registers (csrc/peak.c). Exact kernels
    cannot reach it: they also have to widen the products, and add them up.
    """
    values = np.ones(SCANNED // 4, np.float32)
    bandwidth = _giga(lambda: values.nbytes * bool(np.dot(values, values)), repetitions=5)
    if "c" not in available_backends():
        return Machine(None, {}, bandwidth)
    from pyq._core import lib

    peaks = {
        name: 2 * _giga(partial(lib.pyq_multiplies, isa, ITERATIONS))
        for isa, name in enumerate(ISA_NAMES[: lib.pyq_isa_detected() + 1])
    }
    ghz = _giga(partial(lib.pyq_dependent_adds, ITERATIONS))
    with_sums = 2 * _giga(partial(lib.pyq_multiply_adds, ITERATIONS))
    return Machine(ghz or None, {name: peak for name, peak in peaks.items() if peak}, bandwidth, with_sums or None)


def _giga(work: Callable[[], int], repetitions: int = REPETITIONS) -> float:
    """Billions a second of what `work` returns how much of it was done."""
    best = 0.0
    for _ in range(repetitions):
        start = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - start) / 1e9)
    return best
