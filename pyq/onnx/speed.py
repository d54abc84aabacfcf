"""How fast an int8 model is, against the fastest float32 at hand."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from statistics import mean
from typing import Any

from numpy.typing import NDArray

from pyq.config import get_num_threads
from pyq.onnx.export import to_proto
from pyq.onnx.session import Session
from pyq.quantization.graph import Graph
from pyq.quantization.report import Figure
from pyq.timing import milliseconds

FLOAT, INT8, PEER = "pyq float32", "pyq int8", "ONNX Runtime float32"

Feed = Mapping[str, NDArray[Any]]
Run = Callable[[None, Feed], object]


def speed_figure(float_session: Session, int8_session: Session, feeds: Sequence[Feed], rounds: int = 5) -> Figure:
    """The time per batch of both models, and of ONNX Runtime on the float model where it is installed.

    They take turns, `rounds` times on each of `feeds`; the figure is the mean of the medians, in ms. The baseline is
    the faster of the float runs: a slow one would flatter int8.
    """
    runs: dict[str, Run] = {FLOAT: float_session.run, INT8: int8_session.run}
    peer = _onnxruntime(float_session.graph, feeds[0])
    if peer is not None:
        runs[PEER] = peer
    times: dict[str, list[float]] = {name: [] for name in runs}
    for feed in feeds:
        calls = {name: partial(run, None, feed) for name, run in runs.items()}
        for call in calls.values():
            call()  # plans its memory for the shapes of this feed
        for name, time in milliseconds(calls, rounds).items():
            times[name].append(time)
    average = {name: mean(values) for name, values in times.items()}
    baseline = min((name for name in average if name != INT8), key=average.__getitem__)
    return Figure("Time per batch", average, baseline, INT8, "ms")


def peer_session(model: bytes | os.PathLike[str], threads: int) -> Any:
    """The model as an onnxruntime.InferenceSession on `threads` threads; ImportError when that is not installed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what it does not support is no concern of the user
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _onnxruntime(graph: Graph, feed: Feed) -> Run | None:
    """What runs the graph in ONNX Runtime on as many threads as pyq uses; None if it is missing or refuses `feed`."""
    if find_spec("onnxruntime") is None:
        return None
    try:
        run: Run = peer_session(to_proto(graph).SerializeToString(), get_num_threads()).run
        run(None, feed)
    except Exception:  # its exceptions have no common base; without it there is one baseline less
        return None
    return run
