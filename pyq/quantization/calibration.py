"""Observe the ranges of activations while a float model runs on representative data.

An observer sees a tensor batch by batch and proposes the range of reals that int8 shall cover. Observers are
chosen by name from `OBSERVERS`; another method is one class with `observe` and `range`, and one entry there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import length_hint
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyq.quantization.graph import Graph

Progress = Callable[[int, int | None, str], None]
"""Called with (steps done, steps in all or None when that is not known, what is being done)."""


class FloatModel(Protocol):
    """A model that shows its intermediate values; `pyq.onnx.Session` is one."""

    graph: Graph

    def run_values(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on `feeds`, and return the values called `names`."""
        ...


class Observer(Protocol):
    """Watches one tensor and proposes its quantization range."""

    def observe(self, x: NDArray[np.float32]) -> None:
        """Take in one batch; `x` is finite and may be empty."""
        ...

    def range(self) -> tuple[float, float]:
        """The smallest and the largest real to represent."""
        ...


class MinMaxObserver:
    """The exact range of everything seen; nothing that was observed will saturate.

    >>> observer = MinMaxObserver()
    >>> observer.observe(np.array([-1, 2], np.float32)); observer.observe(np.array([5], np.float32))
    >>> observer.range()
    (-1.0, 5.0)
    """

    def __init__(self) -> None:
        self._low, self._high = np.inf, -np.inf

    def observe(self, x: NDArray[np.float32]) -> None:
        """Widen the range to hold `x`."""
        if x.size:
            self._low = min(self._low, float(x.min()))
            self._high = max(self._high, float(x.max()))

    def range(self) -> tuple[float, float]:
        """Minimum and maximum so far; (0, 0) when only empty tensors were seen."""
        return (self._low, self._high) if self._low <= self._high else (0.0, 0.0)


OBSERVERS: dict[str, Callable[[], Observer]] = {"minmax": MinMaxObserver}


def calibrate(
    model: FloatModel,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    tensors: Sequence[str],
    *,
    method: str = "minmax",
    progress: Progress | None = None,
) -> dict[str, tuple[float, float]]:
    """The range of each of `tensors` over all feeds, by the observer called `method`.

    feeds: one mapping from input name to array per batch; consumed once, held one at
    a time. ValueError when there is no feed, when a feed has unknown or missing inputs, or when an input or
    an observed tensor holds NaN or infinity (the message names it and the batch, counted from 0); TypeError
    when a feed is no mapping.
    """
    if method not in OBSERVERS:
        raise ValueError(f"method: got {method!r}, allowed are {', '.join(sorted(OBSERVERS))}")
    observers = {name: OBSERVERS[method]() for name in tensors}
    inputs = [value.name for value in model.graph.inputs]
    total = length_hint(feeds) or None
    batch = -1
    for batch, feed in enumerate(feeds):
        _check_feed(feed, inputs, batch)
        for name, value in model.run_values(list(tensors), feed).items():
            _check_finite(f"tensor {name!r}", value, batch)
            observers[name].observe(value)
        if progress is not None:
            progress(batch + 1, total, "calibrate")
    if batch < 0:
        raise ValueError("calibration: got no batch, at least one is needed to observe ranges")
    return {name: observer.range() for name, observer in observers.items()}


def _check_feed(feed: Mapping[str, NDArray[Any]], inputs: Sequence[str], batch: int) -> None:
    if not isinstance(feed, Mapping):
        raise TypeError(f"calibration: batch {batch}: expected a mapping of input names to arrays, got {type(feed)}")
    if set(feed) != set(inputs):
        raise ValueError(f"calibration: batch {batch}: got the inputs {sorted(feed)}, the model has {sorted(inputs)}")
    for name, value in feed.items():
        _check_finite(f"input {name!r}", np.asarray(value), batch)


def _check_finite(what: str, value: NDArray[Any], batch: int) -> None:
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        bad = "NaN" if np.isnan(value).any() else "infinity"
        raise ValueError(f"calibration: batch {batch}: {what} contains {bad}, expected finite numbers")
