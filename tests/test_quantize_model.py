"""`pyq.quantize_model` end to end: small models, its options and errors, and the real OCR model."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from matplotlib import font_manager
from models import MODELS, ModelBuilder, classifier, decoder, feeds, residual, volume
from onnx import numpy_helper
from PIL import Image, ImageDraw, ImageFont

import pyq
from pyq.onnx import Session
from pyq.onnx.quantize import VERIFIED, QuantizedModel
from pyq.onnx.steps import ProductStep
from pyq.quantization.graph import Graph
from pyq.quantization.verification import Noise


def run_onnxruntime(model: onnx.ModelProto, feed: dict[str, np.ndarray], **entries: str) -> list[np.ndarray]:
    """ONNX Runtime's outputs: without any fusion, or with the session entries given."""
    options = onnxruntime.SessionOptions()
    if not entries:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in entries.items():
        options.add_session_config_entry(name.replace("__", "."), value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, feed)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def quantize(model: onnx.ModelProto, **options: Any) -> QuantizedModel:
    return pyq.quantize_model(model, feeds(model, 2), **options)


# ---- small models


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_way(name: str, tmp_path: Path) -> None:
    """Exact kernels; the file is valid; pyq runs it as ONNX Runtime does, to some units of float32's last place."""
    model = MODELS[name]()
    result = quantize(model)
    assert result.report.ok and result.report.exact and result.report.layers
    assert min(result.report.outputs.values()) > 25
    path = tmp_path / "model.onnx"
    result.save(path)
    onnx.checker.check_model(path, full_check=True)
    for feed in feeds(model, 4, seed=5):
        [ours], [theirs] = Session(path).run(None, feed), run_onnxruntime(result.model, feed)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(("make", "op_type"), [(volume, "Conv"), (decoder, "ConvTranspose")])
def test_all_between_input_and_output_is_int8(make: Callable[[], onnx.ModelProto], op_type: str) -> None:
    """BatchNormalization, Relu and swish are swallowed, too."""
    _, *steps = Session(quantize(make()).model).steps
    assert [step.op_type for step in steps] == [op_type] * 3
    assert all(isinstance(step, ProductStep) for step in steps)


def test_path_bytes_and_proto_give_the_same_model(tmp_path: Path) -> None:
    model = residual()
    path = tmp_path / "float.onnx"
    onnx.save(model, path)
    made = [pyq.quantize_model(source, feeds(model, 2)) for source in (path, str(path), path.read_bytes(), model)]
    assert len({result.model.SerializeToString(deterministic=True) for result in made}) == 1
    assert [result.report.title for result in made] == ["float.onnx", "float.onnx", "model", "test"]


def test_report_has_figures_and_facts() -> None:
    report = quantize(classifier()).report
    time, size = report.figures
    assert {"pyq float32", "pyq int8", "ONNX Runtime float32"} == set(time.values) and time.unit == "ms"
    assert time.baseline in ("pyq float32", "ONNX Runtime float32")
    assert time.values[time.baseline] <= min(time.values["pyq float32"], time.values["ONNX Runtime float32"])
    assert size.values["pyq int8"] == quantize(classifier()).model.ByteSize()
    assert report.facts["Calibration"] == "2 batches, minmax"
    assert report.facts["Quantization"] == "static, activations uint8, weights int8 of 8 bits per channel"


def test_speed_without_a_peer_that_cannot_run_the_model() -> None:
    """ONNX Runtime has no dilated convolution with automatic padding."""
    b = ModelBuilder((1, 2, 16))
    model = b.model(b.op("Conv", "x", b.weight(2, 2, 3), dilations=[2], auto_pad="SAME_UPPER"))
    assert set(quantize(model).report.figures[0].values) == {"pyq float32", "pyq int8"}


def test_seven_bit_weights() -> None:
    full, reduced = (constants(quantize(residual(), reduce_range=r).model) for r in (False, True))
    weights = [name for name in full if name.endswith("_quantized") and full[name].dtype == np.int8]
    assert len(weights) == 3
    assert {np.abs(full[name]).max() for name in weights} == {127}
    assert {np.abs(reduced[name]).max() for name in weights} == {64}


def test_per_tensor_weights_are_coarser() -> None:
    """A channel of small weights next to one of large weights keeps its digits only with a scale of its own."""
    b = ModelBuilder((8, 32))
    model = b.model(b.op("MatMul", "x", b.constant(b.rng.normal(size=(32, 2)) * [1, 0.02])))
    (feed,) = feeds(model, 1)
    sqnr = []
    for per_channel in (True, False):
        noise = Noise()
        f, q = (Session(m).run(None, feed)[0] for m in (model, quantize(model, per_channel=per_channel).model))
        noise.add(f[:, 1], q[:, 1])
        sqnr.append(noise.sqnr)
    assert sqnr[0] > 35 and sqnr[1] < 25


def test_int8_activations() -> None:
    result = quantize(residual(), activation_dtype="int8")
    assert result.report.exact and constants(result.model)["x_zero_point"].dtype == np.int8


def test_excluded_operators_stay_float() -> None:
    result = quantize(residual(), exclude=["Conv6"])
    assert "Conv6" not in {layer.output for layer in result.report.layers}
    (conv,) = (node for node in result.model.graph.node if node.output[0] == "Conv6")
    assert conv.input[1] in constants(result.model)


# ---- calibration data


def test_a_generator_that_reuses_its_array() -> None:
    model = residual()
    array = np.empty((2, 3, 9, 9), np.float32)

    def generate() -> Iterator[dict[str, np.ndarray]]:
        for feed in feeds(model, VERIFIED + 2):
            array[:] = feed["x"]
            yield {"x": array}

    made, expected = (pyq.quantize_model(model, data) for data in (generate(), feeds(model, VERIFIED + 2)))
    assert made.model == expected.model
    assert [layer.sqnr for layer in made.report.layers] == [layer.sqnr for layer in expected.report.layers]


def test_progress_counts_batches() -> None:
    seen: list[tuple[int, int | None, str]] = []
    model = residual()
    pyq.quantize_model(model, feeds(model, 6), progress=lambda *step: seen.append(step))
    assert seen == [(i, 6, "calibrate") for i in range(1, 7)] + [(i, 4, "verify") for i in range(1, 5)]


@pytest.mark.parametrize(
    "calibration, message",
    [
        ([], "no batch"),
        ([{"x": np.full((2, 3, 9, 9), np.nan, np.float32)}], "batch 0: input 'x' contains NaN"),
        ([{"y": np.zeros(1)}], r"batch 0: got the inputs \['y'\], the model has \['x'\]"),
        ([{"x": np.zeros((2, 3, 9), np.float32)}], r"feeds: input 'x' has shape \(2, 3, 9\)"),
    ],
)
def test_bad_calibration_data(calibration: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyq.quantize_model(residual(), calibration)


def test_bad_options() -> None:
    model = residual()
    with pytest.raises(ValueError, match="max_drop: needs evaluate"):
        quantize(model, max_drop=0.1)
    with pytest.raises(ValueError, match=r"max_drop: expected a number of 0 or more, got -0\.1"):
        quantize(model, evaluate=lambda session: 1, max_drop=-0.1)
    with pytest.raises(ValueError, match="activation_dtype: got 'uint4'"):
        quantize(model, activation_dtype="uint4")
    with pytest.raises(ValueError, match="exclude: got 'nothing'"):
        quantize(model, exclude=["nothing"])
    with pytest.raises(pyq.FormatError):
        pyq.quantize_model(b"no model", feeds(model, 1))


def test_a_model_without_anything_to_quantize() -> None:
    b = ModelBuilder((1, 4))
    with pytest.raises(ValueError, match="model: nothing to quantize"):
        quantize(b.model(b.op("Relu", "x")))


# ---- accuracy


def scores(*values: float) -> Any:
    """An evaluation that returns one value after the other: of the float model first."""
    iterator = iter(values)
    return lambda session: next(iterator)


def test_a_drop_within_what_is_allowed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = quantize(residual(), evaluate=scores(0.9, 0.89), max_drop=0.02).report
    assert report.ok and report.figures[0].values == {"pyq float32": 0.9, "pyq int8": 0.89}


@pytest.mark.parametrize("score", [0.5, np.nan])
def test_a_drop_beyond_what_is_allowed(score: float) -> None:
    with pytest.warns(UserWarning, match=r"the score falls by .* from 0\.9 to .* allowed is 0\.02") as caught:
        report = quantize(residual(), evaluate=scores(0.9, score), max_drop=0.02).report
    assert not report.ok and report.exact and len(report.problems) == 1
    assert caught[0].filename == __file__


def test_evaluate_gets_sessions() -> None:
    model = residual()
    (feed,) = feeds(model, 1)
    seen: list[Session] = []

    def evaluate(session: Session) -> float:
        seen.append(session)
        return float(session.run(None, feed)[0].mean())

    quantize(model, evaluate=evaluate)
    float_steps, int8_steps = ({type(step).__module__ for step in session.steps} for session in seen)
    assert float_steps.isdisjoint({"pyq.onnx.steps"}) and "pyq.onnx.steps" in int8_steps


def test_saving_is_atomic(tmp_path: Path) -> None:
    result = quantize(residual())
    with pytest.raises(FileNotFoundError):
        result.save(tmp_path / "missing" / "model.onnx")
    result.save(tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_signature_is_the_documented_one() -> None:
    parameters = list(inspect.signature(pyq.quantize_model).parameters)
    assert parameters[:4] == ["model", "calibration", "evaluate", "max_drop"]


# ---- the OCR model


@cache
def ocr_model() -> Path:
    found = [file for file in files("rapidocr-onnxruntime") or () if file.name.endswith("rec_infer.onnx")]
    return Path(str(found[0].locate()))


def line(text: str) -> dict[str, np.ndarray]:
    """A line of text as the model's input [1, 3, 48, 320]."""
    image = Image.new("RGB", (320, 48), "white")
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 26)
    ImageDraw.Draw(image).text((6, 8), text, "black", font)
    return {"x": (np.asarray(image, np.float32).transpose(2, 0, 1)[None, ::-1] / 127.5 - 1).copy()}


def characters(classes: np.ndarray) -> list[int]:
    """The classes of a line's characters: repeats merged, blanks (0) dropped."""
    starts = np.flatnonzero(np.diff(classes[0], prepend=-1))
    return [int(index) for index in classes[0][starts] if index]


@cache
def ocr() -> QuantizedModel:
    texts = ("exact integers", "never saturate", "Stage 1, page 27", "QUANTIZED lines")
    return pyq.quantize_model(ocr_model(), [line(text) for text in texts])


def test_ocr_layers_are_exact_and_the_file_small() -> None:
    report = ocr().report
    assert report.exact and report.ok
    operators = [layer.op_type for layer in report.layers]
    assert {"Conv", "MatMul", "Mul", "GlobalAveragePool", "AveragePool", "Concat"} <= set(operators)
    assert operators.count("Conv") == 38 and operators.count("MatMul") == 9
    assert ocr().model.ByteSize() < ocr_model().stat().st_size / 3.5
    onnx.checker.check_model(ocr().model, full_check=True)


def test_ocr_reads_the_same_in_int8() -> None:
    sessions = [Session(ocr_model()), Session(ocr().model)]
    for text in ("exact integers", "page 12 of 345", "jumps over the lazy dog"):
        f, q = (session.run(None, line(text))[0].argmax(-1) for session in sessions)
        assert characters(f) == characters(q) and len(characters(f)) == len(text)


def test_ocr_equals_onnxruntime_bit_for_bit() -> None:
    """Every int8 tensor of the network, against ONNX Runtime in its exact mode.

    Up to the first float operator between two int8 sections; what float operators make may differ in the last
    place.
    """
    session = Session(ocr().model)
    names = tensors_before_float_sections(session.graph)
    assert len(names) > 35
    proto = onnx.ModelProto()
    proto.CopyFrom(ocr().model)
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    feed = line("bit for bit")
    expected = run_onnxruntime(proto, feed, session__x64quantprecision="1")[-len(names) :]
    made = session.run_values(names, feed)
    for name, values in zip(names, expected, strict=True):
        assert np.array_equal(made[name], values), name


def tensors_before_float_sections(graph: Graph) -> list[str]:
    """The quantized activations whose way from the input has no operator but those that run in int8."""
    units = {"Conv", "Add", "Mul", "Div", "Clip", "Relu", "Sigmoid", "HardSigmoid", "Concat", "QuantizeLinear"}
    units |= {"DequantizeLinear", "AveragePool", "GlobalAveragePool"}
    known = {"x", *graph.constants}
    names = []
    for node in graph.sorted():
        if node.op_type in units and known.issuperset(node.reads()):
            known.update(node.outputs)
            names += node.outputs if node.op_type == "QuantizeLinear" else []
    return names
