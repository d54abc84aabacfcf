"""Where the time of a model goes: each step of it, and the whole beside ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from pyq.config import get_num_threads
from pyq.errors import FormatError
from pyq.feeds import Feed
from pyq.onnx.session import Session
from pyq.onnx.speed import peer_session
from pyq.quantization.graph import ValueInfo
from pyq.timing import milliseconds, sample

ROUNDS = (3, 300)
OWN, PEER = "pyq", "ONNX Runtime"


class StepTime(NamedTuple):
    """The first output of a step, its operator, and its median milliseconds."""

    output: str
    op_type: str
    milliseconds: float


class Profile(NamedTuple):
    """The steps in order, and the milliseconds of a whole run by runtime."""

    steps: list[StepTime]
    runs: dict[str, float]


def profile_model(session: Session, model: Path, feed: Feed, seconds: float = 0.5) -> Profile:
    """Time the session of a model, float or int8, on one feed, for about `seconds` each: whole and by step.

    ONNX Runtime takes part in the whole, in turn, where it is installed and runs the model; on as many threads.
    """
    runs: dict[str, Callable[[], object]] = {OWN: partial(session.run, None, feed)}
    if find_spec("onnxruntime") is not None:
        try:
            runs[PEER] = partial(peer_session(model, get_num_threads()).run, None, feed)
            runs[PEER]()
        except Exception:  # its exceptions have no common base; it does not take part then
            runs.pop(PEER, None)
    runs[OWN]()  # plans its memory
    rounds = int(np.clip(seconds * 1e3 / sample(runs[OWN]).milliseconds, *ROUNDS))
    whole = milliseconds(runs, rounds)
    times = session.step_times(feed, rounds)
    steps = zip(session.steps, times, strict=True)
    return Profile([StepTime(step.outputs[0], step.op_type, median(each)) for step, each in steps], whole)


def random_feed(inputs: Sequence[ValueInfo], shapes: Sequence[Sequence[int]], seed: int) -> Feed:
    """An array for each input: normal floats, integers and booleans 1.

    shapes: of the inputs, in order; the model's own where there are fewer, with a first dimension that is free as 1.
    ValueError for another free dimension: only a shape can say what it is.
    """
    rng = np.random.default_rng(seed)
    feed: Feed = {}
    for place, value in enumerate(inputs):
        shape = shapes[place] if place < len(shapes) else _own_shape(value)
        if value.dtype is None or value.dtype == object:
            raise FormatError(f"input {value.name!r} is not of numbers")
        normal = rng.normal(size=tuple(shape)) if value.dtype.kind == "f" else np.ones(tuple(shape))
        feed[value.name] = normal.astype(value.dtype)
    return feed


def _own_shape(value: ValueInfo) -> list[int]:
    shape = [1 if place == 0 and not isinstance(n, int) else n for place, n in enumerate(value.shape or ())]
    fixed = [n for n in shape if isinstance(n, int)]
    if value.shape is None or len(fixed) < len(shape):
        raise ValueError(f"shape: input {value.name!r} of the model is {value.shape}, which leaves its size open")
    return fixed
