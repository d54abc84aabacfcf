"""Times ways to compute the same thing beside each other. Each result is checked before its time counts.

A task has contenders, which take turns (`pyq.timing`); a result has the median time of each, how many of its
outputs are wrong, and the ratio to the fastest float32 of the same run. Ratios hold on a noisy machine; times do not.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.config import config
from pyq.files import write_file
from pyq.timing import milliseconds

SHORTEST = 0.1  # ms: shorter calls are repeated until they take this long, so that the clock's cost does not count
ROUNDS = (5, 300)


class WrongResult(RuntimeError):
    """A contender that has to be right is not; the message has the seed that repeats it."""


@dataclass(frozen=True)
class Contender:
    """One way to compute `expected`.

    call: takes no arguments and returns the result. expected: exact integers; a float32 result is compared with
    them up to rounding. required: whether a wrong result ends the benchmark (pyq's own, and the float baseline);
    otherwise the wrong outputs are counted and shown beside the speed.
    """

    name: str
    call: Callable[[], NDArray[Any]]
    expected: NDArray[Any]
    required: bool = True

    def check(self) -> tuple[int, bool]:
        """Call once. Returns how many outputs are wrong, and whether the result is floating point.

        Floats are all right or all wrong: right is a relative error, in the 2-norm, of at most 1e-5.
        """
        result = self.call()
        is_float = result.dtype.kind == "f"
        if result.shape != self.expected.shape:
            return self.expected.size, is_float
        if not is_float:
            return int(np.count_nonzero(result != self.expected)), is_float
        exact = self.expected.astype(np.float64)
        close = np.linalg.norm(result - exact) <= 1e-5 * np.linalg.norm(exact)
        return (0 if close else exact.size), is_float


@dataclass(frozen=True)
class Task:
    """What the contenders compute: a label, its multiply-accumulates, and the seed that its data came from."""

    label: str
    macs: int
    seed: int
    contenders: Sequence[Contender]


@dataclass(frozen=True)
class Timing:
    """Of one contender: median milliseconds of a call, wrong outputs, outputs, whether it computes in float32."""

    name: str
    milliseconds: float
    wrong: int
    outputs: int
    is_float: bool


@dataclass(frozen=True)
class Result:
    """The timings of a task."""

    label: str
    macs: int
    seed: int
    timings: tuple[Timing, ...]

    def gops(self, timing: Timing) -> float:
        """Billions of operations a second; a multiply-accumulate counts as two."""
        return 2e-6 * self.macs / timing.milliseconds

    def ratio(self, timing: Timing) -> float:
        """How many times as fast as the fastest float32 contender of this task; NaN when there is none."""
        return min((t.milliseconds for t in self.timings if t.is_float), default=math.nan) / timing.milliseconds


def measure(task: Task, seconds: float = 0.5) -> Result:
    """Check every contender, then time them in turn for about `seconds` in all.

    WrongResult when a required contender is wrong: nothing of the task is timed then.

    >>> import numpy as np
    >>> add = Contender("add", lambda: np.full(2, 1 + 1), np.array([2, 2]))
    >>> [timing.wrong for timing in measure(Task("sum", 2, 0, [add]), seconds=0).timings]
    [0]
    """
    checks = {contender.name: contender.check() for contender in task.contenders}
    for contender in task.contenders:
        wrong, size = checks[contender.name][0], contender.expected.size
        if contender.required and wrong:
            raise WrongResult(f"{contender.name}, {task.label}, seed {task.seed}: {wrong} of {size} outputs are wrong")
    estimates = {contender.name: _once(contender.call) for contender in task.contenders}
    repeats = {name: max(1, math.ceil(SHORTEST / estimate)) for name, estimate in estimates.items()}
    runs = {c.name: _repeated(c.call, repeats[c.name]) for c in task.contenders}
    round_ms = 2 * sum(estimates[name] * repeats[name] for name in runs)
    medians = milliseconds(runs, int(np.clip(seconds * 1e3 / round_ms, *ROUNDS)), warm=True)
    timings = (
        Timing(c.name, medians[c.name] / repeats[c.name], checks[c.name][0], c.expected.size, checks[c.name][1])
        for c in task.contenders
    )
    return Result(task.label, task.macs, task.seed, tuple(timings))


def _once(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def _repeated(call: Callable[[], object], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            call()

    return run


def mean_ratios(results: Iterable[Result]) -> dict[str, float]:
    """The geometric mean of each contender's ratio to float32 over the tasks that it took part in."""
    ratios: dict[str, list[float]] = {}
    for result in results:
        for timing in result.timings:
            ratios.setdefault(timing.name, []).append(result.ratio(timing))
    return {name: float(np.exp(np.mean(np.log(values)))) for name, values in ratios.items()}


def save_json(path: str | os.PathLike[str], results: Sequence[Result]) -> None:
    """Write the results, and what they were measured on, as JSON."""
    document = {"config": config(), "results": [asdict(result) for result in results]}
    write_file(path, json.dumps(document, indent=1).encode())
