"""Times alternatives in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

TASKS = Path("/proc/self/task")
QUIET = 0.02  # share of its time that a repetition may have waited for a core, to count as undisturbed
SETTLED = 1e-4, 3e-4  # seconds: of computing, at most, within so much time, where no thread of a pool spins any more


class Sample(NamedTuple):
    """One repetition: milliseconds a call, and for how much of its time a thread of the process waited for a core."""

    milliseconds: float
    waited: float


def sample(call: Callable[[], object], repeats: int = 1) -> Sample:
    """Time `repeats` calls together.

    >>> sample(int).milliseconds < 1e3
    True
    """
    waited, start = run_queue_delay(), time.perf_counter()
    for _ in range(repeats):
        call()
    seconds = time.perf_counter() - start
    return Sample(seconds / repeats * 1e3, (run_queue_delay() - waited) / seconds)


def run_queue_delay() -> float:
    """Seconds that the threads of this process have been ready to run without a core; 0 where no Linux counts them."""
    total = 0
    for task in TASKS.glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])  # nanoseconds; Documentation/scheduler/sched-stats.rst
        except OSError:  # the thread has ended, or the kernel does not count
            continue
    return total / 1e9


def settle() -> None:
    """Return when the threads of this process sleep: those of a pool may spin for a while, on others' cores."""
    computing, within = SETTLED
    for _ in range(200):
        before = time.process_time()
        time.sleep(within)
        if time.process_time() - before < computing:
            return


def undisturbed(samples: Sequence[Sample]) -> float:
    """The median milliseconds of the repetitions that did not wait for a core; of a quarter of them, at least.

    >>> undisturbed([Sample(3, 0), Sample(5, 0.01), Sample(4, 0), Sample(90, 0.9)])
    4
    """
    ranked = sorted(samples, key=lambda one: one.waited)
    count = max(sum(one.waited <= QUIET for one in ranked), math.ceil(len(ranked) / 4))
    return median(one.milliseconds for one in ranked[:count])


def milliseconds(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the `undisturbed` time of each of `runs` over `rounds` rounds, in each of which all run once.

    Nothing is run to warm up: call the functions before, where the first call does more than the others.

    >>> sorted(milliseconds({"a": int, "b": float}, rounds=3))
    ['a', 'b']
    """
    samples: dict[str, list[Sample]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            samples[name].append(sample(run))
    return {name: undisturbed(values) for name, values in samples.items()}
