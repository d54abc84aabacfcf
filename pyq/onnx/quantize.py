"""`pyq.quantize_model`: from a trained ONNX model and some data to a verified int8 one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from pyq.backends import current_backend
from pyq.config import get_num_threads
from pyq.files import write_file
from pyq.onnx.export import to_proto
from pyq.onnx.load import ModelSource
from pyq.onnx.session import Session
from pyq.onnx.speed import FLOAT, INT8, speed_figure
from pyq.quantization.calibration import Progress, calibrate
from pyq.quantization.report import Figure, Report, environment
from pyq.quantization.selection import ANCHORS, select
from pyq.quantization.static import Recipe, activation_params, calibrated_tensors, insert_qdq
from pyq.quantization.verification import verify

Feed = Mapping[str, NDArray[Any]]

VERIFIED = 4
"""Calibration batches that the model is verified on; errors of rounding show in a few."""


@dataclass(frozen=True)
class QuantizedModel:
    """model: the int8 model as standard ONNX (QDQ). report: how it compares with the float model."""

    model: ModelProto
    report: Report

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as an ONNX file; `path` is replaced in one step."""
        write_file(path, self.model.SerializeToString())


def quantize_model(
    model: ModelSource,
    calibration: Iterable[Feed],
    *,
    evaluate: Callable[[Session], float] | None = None,
    max_drop: float | None = None,
    reduce_range: bool = False,
    per_channel: bool = True,
    activation_dtype: str = "uint8",
    op_types: Collection[str] | None = None,
    exclude: Collection[str] = (),
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantize a float model statically: int8 weights, 8-bit activations in ranges observed on `calibration`.

    model: path, bytes or ModelProto of a float32 ONNX model. calibration: real inputs, one mapping of input
    names to arrays per batch; any iterable, read once. evaluate: scores a session, higher is better; called
    with the float and with the int8 model. max_drop: how far the score may fall; if it falls further, the
    report says so, `report.ok` is False, and a UserWarning is given. reduce_range: weights of 7 bits instead
    of 8; per_channel: a scale for each output channel of a weight; activation_dtype: "uint8" or "int8"; see
    `pyq.quantization.static.Recipe`. op_types: the operators to quantize, all of
    `pyq.quantization.selection.OPERATORS` by default. exclude: names of nodes, or of values they make, that
    stay float. progress: called with (done, total or None, what).

    ValueError when calibration is empty, has inputs that the model has not, or NaN or infinity; when the
    model has nothing to quantize; when an option is not one of those allowed. FormatError and
    UnsupportedOperator as in `Session`.

    >>> import numpy as np
    >>> from onnx import parser
    >>> text = '''<ir_version: 8, opset_import: ["": 17]>
    ... g (float[1,2] x) => (float[1,2] y) <float[2,2] w = {1, 0.5, -2, 1}> { y = MatMul(x, w) }'''
    >>> result = quantize_model(parser.parse_model(text), [{"x": np.float32([[1, -1]])}])
    >>> result.report.exact, [node.op_type for node in result.model.graph.node][-1]
    (True, 'MatMul')
    """
    if max_drop is not None and evaluate is None:
        raise ValueError("max_drop: needs evaluate, the function that scores a model")
    if max_drop is not None and not max_drop >= 0:
        raise ValueError(f"max_drop: expected a number of 0 or more, got {max_drop}")
    recipe = Recipe(activation_dtype, per_channel, reduce_range)
    float_session = Session(model)
    units = select(float_session.graph, op_types=op_types, exclude=exclude)
    if not units:
        raise ValueError(
            f"model: nothing to quantize, no {', '.join(ANCHORS)} with constant float32 weights is selected"
        )

    batches = _Batches(calibration)
    ranges = calibrate(float_session, batches, calibrated_tensors(units), progress=progress)
    int8_graph = insert_qdq(float_session.graph, units, activation_params(units, ranges, recipe), recipe)
    int8_model = to_proto(int8_graph)
    int8_session = Session(int8_model)

    verification = verify(float_session, int8_session, batches.first, progress=progress)
    report = Report(_title(model), layers=verification.layers, outputs=verification.outputs)
    if evaluate is not None:
        scores = {FLOAT: float(evaluate(float_session)), INT8: float(evaluate(int8_session))}
        report.figures.append(Figure("Score", scores, FLOAT, INT8, better="higher"))
        report.problems += _excess(scores, max_drop)
    report.figures.append(speed_figure(float_session, int8_session, batches.first[:1]))
    sizes = {FLOAT: to_proto(float_session.graph).ByteSize(), INT8: int8_model.ByteSize()}
    report.figures.append(Figure("File size", sizes, FLOAT, INT8, "bytes"))
    report.facts = {
        "Quantization": f"static, {recipe}",
        "Calibration": f"{batches.count} batches, minmax",
        "Backend": f"{current_backend().name}, {get_num_threads()} threads",
        **environment(),
    }
    return QuantizedModel(int8_model, report)


class _Batches:
    """The calibration batches, read once. first: copies of the first ones, to verify on; count: how many."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = feeds
        self.first: list[Feed] = []
        self.count = 0

    def __iter__(self) -> Iterator[Feed]:
        for feed in self._feeds:
            yield feed
            self.count += 1
            if len(self.first) < VERIFIED:  # a generator may reuse its arrays
                self.first.append({name: np.array(value) for name, value in feed.items()})

    def __length_hint__(self) -> int:
        return length_hint(self._feeds)


def _excess(scores: Mapping[str, float], max_drop: float | None) -> list[str]:
    """The problem of a score that falls by more than `max_drop`, if it does; NaN counts as falling."""
    drop = scores[FLOAT] - scores[INT8]
    if max_drop is None or drop <= max_drop:
        return []
    change = f"from {scores[FLOAT]:.4g} to {scores[INT8]:.4g}"
    problem = f"the score falls by {drop:.4g}, {change}; allowed is {max_drop:.4g}"
    warnings.warn(f"quantize_model: {problem}", UserWarning, stacklevel=3)
    return [problem]


def _title(model: ModelSource) -> str:
    if isinstance(model, ModelProto):
        return model.graph.name or "model"
    return "model" if isinstance(model, bytes) else Path(model).name
