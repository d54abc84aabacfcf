"""Compares an int8 model with the float model that it stands for, on data."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from statistics import mean

from pyq.feeds import read_feeds
from pyq.onnx import Session
from pyq.quantization.report import Figure, Report
from pyq.quantization.verification import Noise
from pyq.timing import milliseconds

FLOAT, INT8 = "float", "int8"


def compare_models(
    float_model: Path, int8_model: Path, data: Path, *, threads: int | None = None, rounds: int = 5
) -> Report:
    """Run both models on all of `data`; report the SQNR of each output, time per input and file sizes.

    data: as `pyq.feeds.read_feeds` takes it. rounds: timed runs per input, in which the models take turns.
    ValueError when the models do not have the same outputs.
    """
    models = {FLOAT: float_model, INT8: int8_model}
    sessions = {name: Session(model, threads=threads) for name, model in models.items()}
    outputs, others = ([value.name for value in session.get_outputs()] for session in sessions.values())
    if outputs != others:
        raise ValueError(f"int8_model: {int8_model} has the outputs {others}, {float_model} has {outputs}")
    noise = {name: Noise() for name in outputs}
    times: dict[str, list[float]] = {name: [] for name in models}
    for feed in read_feeds(data, sessions[FLOAT].get_inputs()):
        runs = {name: partial(session.run, None, feed) for name, session in sessions.items()}
        for name, exact, approximate in zip(outputs, runs[FLOAT](), runs[INT8](), strict=True):
            noise[name].add(exact, approximate)
        for name, time in milliseconds(runs, rounds).items():
            times[name].append(time)
    average = {name: mean(values) for name, values in times.items()}
    sizes = {name: path.stat().st_size for name, path in models.items()}
    figures = [
        Figure("Time per input", average, FLOAT, INT8, "ms"),
        Figure("File size", sizes, FLOAT, INT8, "bytes"),
    ]
    return Report(float_model.name, figures, outputs={name: total.sqnr for name, total in noise.items()})
