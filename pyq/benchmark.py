"""Times ways to compute the same thing beside each other. Each result is checked before its time counts.

A task has contenders, which take turns (`pyq.timing`); a result has the median time of each, how many of its
outputs are wrong, and the ratio to the fastest float32 of the same run. Ratios hold on a noisy machine; times do not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pyq.config import config
from pyq.files import write_file
from pyq.timing import Sample, sample, settle, undisturbed

SHORTEST = 1.0  # ms: shorter calls are repeated until they take this long; the core has to wake up and to warm up
ROUNDS = (5, 300)
ROUNDING = 2**-10  # of a unit: so near to a tie either neighbour is right, since multipliers are float32


class WrongResult(RuntimeError):
    """A contender that has to be right is not; the message has the seed that repeats it."""


class Check(NamedTuple):
    """What a contender returned: how many of its outputs are wrong, of how many; whether it computes in float32."""

    wrong: int
    outputs: int
    is_float: bool


class Competitor(Protocol):
    """What can be measured: a `Contender`, here or in another process.

    required: whether a wrong result ends the benchmark (pyq's own, and the float baseline); otherwise the wrong
    outputs are counted and shown beside the speed.
    """

    @property
    def name(self) -> str: ...
    @property
    def required(self) -> bool: ...

    def check(self) -> Check:
        """Call once, and compare the result with the expected one."""
        ...

    def sample(self, repeats: int) -> Sample:
        """Time `repeats` calls, after as many that are not timed: what ran before left its own data in the caches."""
        ...


@dataclass(frozen=True)
class Contender:
    """One way to compute `expected`, as a `Competitor`.

    call: takes no arguments and returns the result. expected: exact integers; or exact reals in float64, of which
    integers have to be a rounding (any, where two are equally near). A float32 result is compared up to rounding.
    read: makes an array of what `call` returned; its time does not count. in_float: whether it computes in float32;
    None where it does if its result is float32.
    """

    name: str
    call: Callable[[], Any]
    expected: NDArray[Any]
    required: bool = True
    read: Callable[[Any], NDArray[Any]] = np.asarray
    in_float: bool | None = None

    def check(self) -> Check:
        """Floats are all right or all wrong: right is a relative error, in the 2-norm, of at most 1e-5."""
        result, size = self.read(self.call()), self.expected.size
        has_floats = result.dtype.kind == "f"
        in_float = has_floats if self.in_float is None else self.in_float
        if result.shape != self.expected.shape:
            return Check(size, size, in_float)
        exact = self.expected.astype(np.float64)
        if has_floats:
            close = np.linalg.norm(result - exact) <= 1e-5 * np.linalg.norm(exact)
            return Check(0 if close else size, size, in_float)
        allowed = 0.5 + ROUNDING if self.expected.dtype.kind == "f" else 0
        return Check(int(np.count_nonzero(np.abs(result - exact) > allowed)), size, in_float)

    def sample(self, repeats: int) -> Sample:
        """See `Competitor.sample`. Returns when no thread computes any more, so that the next one has the cores."""
        for _ in range(repeats):
            self.call()
        taken = sample(self.call, repeats)
        settle()
        return taken


@dataclass(frozen=True)
class Task:
    """What the contenders compute.

    macs: multiply-accumulates; bytes: of operands and result, in int8, that have to be moved at least; seed: that
    the data came from.
    """

    label: str
    macs: int
    bytes: int
    seed: int
    contenders: Sequence[Competitor]


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
    bytes: int
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
    >>> [timing.wrong for timing in measure(Task("sum", 2, 24, 0, [add]), seconds=0).timings]
    [0]
    """
    checks = {contender.name: checked(task, contender) for contender in task.contenders}
    estimates = {contender.name: estimate(contender) for contender in task.contenders}
    repeats = {name: enough(milliseconds) for name, milliseconds in estimates.items()}
    round_ms = 2 * sum(estimates[name] * repeats[name] for name in repeats)
    samples: dict[str, list[Sample]] = {name: [] for name in repeats}
    for _ in range(int(np.clip(seconds * 1e3 / round_ms, *ROUNDS))):
        for contender in task.contenders:
            samples[contender.name].append(contender.sample(repeats[contender.name]))
    timings = (
        Timing(name, undisturbed(taken), checks[name].wrong, checks[name].outputs, checks[name].is_float)
        for name, taken in samples.items()
    )
    return Result(task.label, task.macs, task.bytes, task.seed, tuple(timings))


def estimate(contender: Competitor) -> float:
    """Roughly the milliseconds of a call: the first one, still cold, tells how many to time."""
    return contender.sample(enough(contender.sample(1).milliseconds)).milliseconds


def enough(milliseconds: float) -> int:
    """How many calls take `SHORTEST`."""
    return max(1, math.ceil(SHORTEST / milliseconds))


def checked(task: Task, contender: Competitor) -> Check:
    """Check a contender of the task; WrongResult, with the seed, when it is required to be right and is not."""
    check = contender.check()
    if contender.required and check.wrong:
        found = f"{check.wrong} of {check.outputs} outputs are wrong"
        raise WrongResult(f"{contender.name}, {task.label}, seed {task.seed}: {found}")
    return check


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
