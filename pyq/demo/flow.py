"""The demo: a real OCR model reads text in float, is quantized, reads it in int8, and is verified."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from rich.console import Console
from threadpoolctl import threadpool_limits

import pyq
from pyq.console import layers_table, progress
from pyq.demo.assets import find_fonts, find_model, find_sentences
from pyq.demo.lines import Line, render_lines
from pyq.demo.reading import Readings, Run, read_line
from pyq.demo.recognizer import alphabet, preprocess
from pyq.onnx import Session
from pyq.onnx.speed import FLOAT, INT8, PEER, peer_session
from pyq.quantization.report import Figure, Report, Sample

PEER_INT8 = "ONNX Runtime int8"
ALLOWED_LOSS = 0.01
SAMPLES = 8


@dataclass(frozen=True)
class Settings:
    """What to read, and how.

    lines to read, other lines for calibration, timed rounds per line, threads of every runtime; folder of the
    sentences, the int8 model and the report.
    """

    lines: int
    calibration: int
    rounds: int
    threads: int
    folder: Path


def run_demo(settings: Settings, console: Console) -> bool:
    """Run the four steps; write `model.int8.onnx` and `report.html` to the folder.

    Returns whether every layer is exact and int8 reads as well as float, up to 0.01 of character error rate.
    Raises FileNotFoundError, saying what to install, when the model or the sentences are not there.
    """
    model, int8_model = find_model(), settings.folder / "model.int8.onnx"
    session = Session(model, threads=settings.threads)
    classes = alphabet(session.metadata["character"])
    evaluation, calibration = _render(settings, set(classes))
    console.print(
        f"{model.name}\n{len(evaluation)} lines to read, {len(calibration)} others to calibrate on; "
        f"threads of every runtime: {settings.threads}"
    )
    with threadpool_limits(settings.threads):
        console.rule("1. Read in float")
        runs = {FLOAT: _pyq(session)}
        if find_spec("onnxruntime"):
            runs[PEER] = _onnxruntime(model, settings.threads)
        _read(evaluation, runs, classes, settings, console)

        console.rule("2. Calibrate and quantize")
        feeds = [{"x": preprocess(line.image)} for line in calibration]
        with progress(console) as update:
            result = pyq.quantize_model(model, calibration=feeds, progress=update)
        result.save(int8_model)
        onnx.checker.check_model(int8_model, full_check=True)

        console.rule("3. Read in int8, and in float beside it")
        runs[INT8] = _pyq(Session(int8_model, threads=settings.threads))
        if PEER in runs:
            runs[PEER_INT8] = _onnxruntime(int8_model, settings.threads)
        readings = _read(evaluation, runs, classes, settings, console)

    console.rule("4. Verify")
    report = _completed(result.report, model, int8_model, evaluation, readings, settings)
    html = settings.folder / "report.html"
    report.to_html(html)
    console.print(layers_table(report, worst=10))
    console.print(report.table())
    console.out(f"baseline for speed: {_baseline(readings)}, the faster float32", highlight=False)
    for problem in report.problems:
        console.out(f"problem: {problem}", style="bold red", highlight=False)
    console.out(f"wrote {html}\nwrote {int8_model}", highlight=False)
    return report.ok


def _render(settings: Settings, characters: set[str]) -> tuple[list[Line], list[Line]]:
    sentences, fonts = find_sentences(settings.folder), find_fonts()
    evaluation = render_lines(sentences, characters, fonts, "evaluation")
    calibration = render_lines(sentences, characters, fonts, "calibration")
    return list(islice(evaluation, settings.lines)), list(islice(calibration, settings.calibration))


def _pyq(session: Session) -> Run:
    return lambda tensor: session.run(None, {"x": tensor})[0]


def _onnxruntime(model: Path, threads: int) -> Run:
    session = peer_session(model, threads)
    return lambda tensor: session.run(None, {"x": tensor})[0]


def _read(
    lines: Sequence[Line], runs: Mapping[str, Run], classes: list[str], settings: Settings, console: Console
) -> dict[str, Readings]:
    """Read all lines with all runtimes, show the figures of each and return them."""
    readings = {name: Readings() for name in runs}
    with progress(console) as update:
        for done, line in enumerate(lines, 1):
            read_line(line, runs, classes, settings.rounds, readings)
            update(done, len(lines), "read")
    for name, reading in readings.items():
        console.out(
            f"{name:21} {reading.error_rate:.4f} character error rate, "
            f"{reading.lines_right:.1%} of lines right, {reading.ms:.1f} ms/line",
            highlight=False,
        )
    return readings


def _completed(
    report: Report,
    float_model: Path,
    int8_model: Path,
    lines: Sequence[Line],
    readings: Mapping[str, Readings],
    settings: Settings,
) -> Report:
    """The report of the quantization with what was read: figures and samples of the evaluation lines."""
    loss = readings[INT8].error_rate - readings[FLOAT].error_rate
    too_much = [f"the character error rate rises by {loss:.4f}, allowed is {ALLOWED_LOSS}"]
    return replace(
        report,
        title="PP-OCRv4 text recognition",
        figures=_figures(readings, float_model, int8_model),
        samples=_samples(lines, readings),
        facts={**report.facts, **_facts(settings, readings)},
        problems=report.problems + (too_much if loss > ALLOWED_LOSS else []),
    )


def _baseline(readings: Mapping[str, Readings]) -> str:
    """The fastest float runtime: what int8 has to beat."""
    return min((name for name in (FLOAT, PEER) if name in readings), key=lambda name: readings[name].ms)


def _figures(readings: Mapping[str, Readings], float_model: Path, int8_model: Path) -> list[Figure]:
    errors = {name: reading.error_rate for name, reading in readings.items()}
    right = {name: reading.lines_right for name, reading in readings.items()}
    times = {name: reading.ms for name, reading in readings.items()}
    sizes = {FLOAT: float_model.stat().st_size, INT8: int8_model.stat().st_size}
    return [
        Figure("Character error rate", errors, FLOAT, INT8),
        Figure("Lines right", right, FLOAT, INT8, "%", "higher"),
        Figure("Time per line", times, _baseline(readings), INT8, "ms"),
        Figure("File size", sizes, FLOAT, INT8, "bytes"),
    ]


def _facts(settings: Settings, readings: Mapping[str, Readings]) -> dict[str, str]:
    read = len(readings[INT8].labels)
    return {
        "Baseline for speed": _baseline(readings),
        "Threads": f"{settings.threads}, for every runtime",
        "Time": f"median over the lines; {settings.rounds} rounds in which the runtimes take turns",
        "Lines": f"{read} to read, {settings.calibration} others for calibration; no text is in both",
    }


def _samples(lines: Sequence[Line], readings: Mapping[str, Readings]) -> list[Sample]:
    """Some lines with what float and int8 read, those that int8 misread first."""
    wrong_first = sorted(range(len(lines)), key=lambda i: readings[INT8].texts[i] == lines[i].text)
    return [
        Sample(lines[i].text, {name: readings[name].texts[i] for name in (FLOAT, INT8)}, _png(lines[i].image))
        for i in wrong_first[:SAMPLES]
    ]


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
