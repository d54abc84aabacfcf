"""Times alternatives in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median


def milliseconds(runs: Mapping[str, Callable[[], object]], rounds: int, *, warm: bool = False) -> dict[str, float]:
    """Return the median milliseconds of each of `runs` over `rounds` rounds, in each of which all run once.

    warm: call each once untimed before it is timed, every time, so that it does not matter what the one before it
    left in the caches. Otherwise nothing is run to warm up: call the functions before, where the first call does
    more than the others.

    >>> sorted(milliseconds({"a": int, "b": float}, rounds=3))
    ['a', 'b']
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if warm:
                run()
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: median(values) for name, values in times.items()}
