"""Compares an int8 model with the float model that it stands for, on data."""

from __future__ import annotations

from pathlib import Path

from pyq.feeds import read_feeds
from pyq.onnx import Session
from pyq.onnx.speed import FLOAT, INT8, speed_figure
from pyq.quantization.report import Figure, Report
from pyq.quantization.verification import Noise


def compare_models(
    float_model: Path, int8_model: Path, data: Path, *, threads: int | None = None, rounds: int = 5
) -> Report:
    """Run both models on all of `data`; report the SQNR of each output, time per input and file sizes.

    data: as `pyq.feeds.read_feeds` takes it. rounds: timed runs per input, in which the models take turns.
    ValueError when the models do not have the same outputs.
    """
    exact, approximate = (Session(model, threads=threads) for model in (float_model, int8_model))
    outputs, others = ([value.name for value in session.get_outputs()] for session in (exact, approximate))
    if outputs != others:
        raise ValueError(f"int8_model: {int8_model} has the outputs {others}, {float_model} has {outputs}")
    feeds = read_feeds(data, exact.get_inputs())
    noise = {name: Noise() for name in outputs}
    for feed in feeds:
        for name, f, q in zip(outputs, exact.run(None, feed), approximate.run(None, feed), strict=True):
            noise[name].add(f, q)
    sizes = {FLOAT: float_model.stat().st_size, INT8: int8_model.stat().st_size}
    figures = [speed_figure(exact, approximate, feeds, rounds), Figure("File size", sizes, FLOAT, INT8, "bytes")]
    return Report(float_model.name, figures, outputs={name: total.sqnr for name, total in noise.items()})
