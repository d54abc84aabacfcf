"""The session: inputs, outputs, intermediate values, errors, threads; and the OCR model against ONNX Runtime."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

import pyq
from pyq.demo.assets import find_model
from pyq.errors import FormatError, UnsupportedOperator
from pyq.onnx import Session

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
TWO_OUTPUTS = """(float[N, 3] x, int64[1] i) => (float[N, 3] y, float[N, 3] z) {
    a = Exp(x)
    b = Neg(a)
    y = Tanh(b)
    z = Mul(a, b)
}"""


def session(text: str, **options: str) -> Session:
    return Session(parser.parse_model(f"{HEADER} g {text}"), **options)


def feeds(rows: int = 2) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32), "i": np.array([1])}


def test_inputs_and_outputs_are_described_as_onnxruntime_does() -> None:
    values = "(float[N, 3] x, int64[1] i, bool b, float16[?, 2] h, string[1] s) => (double[N, 3] y)"
    proto = parser.parse_model(f"{HEADER} g {values} {{ y = Cast <to = 11>(x) }}")
    ours, theirs = Session(proto), onnxruntime.InferenceSession(proto.SerializeToString())
    for a, b in zip(
        [*ours.get_inputs(), *ours.get_outputs()], [*theirs.get_inputs(), *theirs.get_outputs()], strict=True
    ):
        assert (a.name, a.shape, a.type) == (b.name, b.shape, b.type)


def test_outputs_come_in_the_order_asked_for() -> None:
    model, x = session(TWO_OUTPUTS), feeds()
    y, z = model.run(None, x)
    again = model.run(["z", "y", "z"], x)
    for got, expected in zip(again, [z, y, z], strict=True):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(z, -(np.exp(x["x"]) ** 2), rtol=1e-6)
    with pytest.raises(ValueError, match=r"no output 'a', the model has \['y', 'z'\]"):
        model.run(["a"], x)


def test_any_value_can_be_asked_for() -> None:
    model, x = session(TWO_OUTPUTS), feeds()
    values = model.run_values(["b", "x", "y", "b"], x)
    assert list(values) == ["b", "x", "y"]
    np.testing.assert_array_equal(values["b"], -np.exp(x["x"]))
    np.testing.assert_array_equal(values["y"], model.run(["y"], x)[0])
    with pytest.raises(ValueError, match="no value 'nothing'"):
        model.run_values(["nothing"], x)


def test_outputs_stay_valid_in_later_runs() -> None:
    model = session(TWO_OUTPUTS)
    results = [model.run(None, feeds(rows)) for rows in (1, 2, 2, 3, 2)]
    for rows, result in zip((1, 2, 2, 3, 2), results, strict=True):
        for got, expected in zip(result, session(TWO_OUTPUTS).run(None, feeds(rows)), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_outputs_that_are_constants_or_inputs() -> None:
    model = session("(float[N] x) => (float[N] x, float[2] k) <float[2] k = {1, 2}> {}")
    x, k = model.run(None, {"x": np.float32([3])})
    assert x.tolist() == [3] and k.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input 'x' is missing"),
        ({"w": np.zeros(1)}, r"no input 'w', its inputs are \['x', 'i'\]"),
        ({"x": np.zeros((2, 3))}, "input 'x' is float64, expected float32"),
        ({"i": np.array([1], np.int32)}, "input 'i' is int32, expected int64"),
        ({"x": np.zeros(3, np.float32)}, r"input 'x' has shape \(3,\), expected \('N', 3\)"),
        ({"x": np.zeros((2, 4), np.float32)}, r"input 'x' has shape \(2, 4\), expected \('N', 3\)"),
    ],
)
def test_feeds_are_checked(change: dict[str, np.ndarray | None], message: str) -> None:
    given = {name: array for name, array in {**feeds(), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        session(TWO_OUTPUTS).run(None, given)


def test_lists_are_taken_as_arrays_of_the_right_type_only() -> None:
    model = session("(int64[N] x) => (int64[N] y) { y = Neg(x) }")
    assert model.run(None, {"x": [1, 2]})[0].tolist() == [-1, -2]


def test_errors_at_run_time_name_the_node() -> None:
    model = session("(float[N] a, float[M] b) => (float[K] y) { y = Add(a, b) }")
    with pytest.raises(ValueError, match=r"node 'y' \(Add\).*\(2,\) \(3,\)"):
        model.run(None, {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})


def test_what_cannot_run_is_refused_before_anything_runs() -> None:
    header = '<ir_version: 8, opset_import: ["": 17, "com.example": 4]>'
    text = header + " g (float[N] x) => (float[N] y) { y = com.example.Magic(x) }"
    with pytest.raises(UnsupportedOperator, match=r"node 'y': operator com\.example\.Magic of opset 4") as caught:
        Session(parser.parse_model(text))
    assert caught.value.node == "y" and caught.value.opset == 4


def test_models_come_as_path_bytes_or_proto(tmp_path: Path) -> None:
    proto = parser.parse_model(f"{HEADER} g (float[N] x) => (float[N] y) {{ y = Relu(x) }}")
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    for source in (path, str(path), path.read_bytes(), proto):
        assert Session(source).run(None, {"x": np.float32([-1, 1])})[0].tolist() == [0, 1]
    with pytest.raises(FormatError):
        Session(b"junk")


def test_metadata_is_kept() -> None:
    proto = parser.parse_model(f"{HEADER} g (float[N] x) => (float[N] y) {{ y = Relu(x) }}")
    proto.metadata_props.add(key="character", value="a\nb")
    assert Session(proto).metadata == {"character": "a\nb"}


def test_subgraphs_run() -> None:
    model = session(
        """(bool c, float[N] x) => (float[N] y) {
            a = Relu(x)
            y = If (c) <then_branch = t () => (float[N] u) { u = Neg(a) },
                        else_branch = e () => (float[N] v) { v = Add(x, x) }>
        }"""
    )
    x = np.float32([-1, 2])
    assert model.run(None, {"c": np.array(True), "x": x})[0].tolist() == [0, -2]
    assert model.run(None, {"c": np.array(False), "x": x})[0].tolist() == [-2, 4]


def test_a_loop_runs() -> None:
    model = session(
        """(int64 n, float[2] x) => (float[2] y, float[n, 2] all) {
            go = Constant <value = bool {1}> ()
            y, all = Loop (n, go, x) <body = b (int64 i, bool c, float[2] v) => (bool k, float[2] w, float[2] s) {
                k = Identity(c)
                w = Add(v, x)
                s = Identity(w)
            }>
        }"""
    )
    y, all_values = model.run(None, {"n": np.array(3), "x": np.float32([1, 2])})
    assert y.tolist() == [4, 8] and all_values.tolist() == [[2, 4], [3, 6], [4, 8]]


def test_infinities_are_values_and_not_warnings(recwarn: pytest.WarningsRecorder) -> None:
    model = session("(float[N] x) => (float[N] y) { a = Exp(x) y = Reciprocal(a) }")
    assert model.run(None, {"x": np.float32([1000, -1000])})[0].tolist() == [0, np.inf]
    assert not recwarn.list


def test_fused_regions_compute_what_their_operators_do() -> None:
    text = """(float[N, C, H] x) => (float[N, C, H] y) <float three = {3}, float zero = {0}, float six = {6}> {
        a = Add(x, three)
        c = Clip(a, zero, six)
        m = Mul(x, c)
        y = Div(m, six)
    }"""
    model = session(text)
    assert [step.op_type for step in model.steps] == ["Add+Clip+Mul+Div"]
    x = np.random.default_rng(0).normal(0, 4, (3, 50, 333)).astype(np.float32)
    expected = model.run_values(["a", "c", "m", "y"], {"x": x})["y"]
    layouts = [x, np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1), x[:, ::-1][:, ::-1], x[:, ::2]]
    for given in layouts:
        got = model.run(None, {"x": given})[0]
        np.testing.assert_array_equal(got, expected if given.shape == x.shape else expected[:, ::2])
    assert model.run(None, {"x": x[:0]})[0].shape == (0, 50, 333)


def test_backend_and_threads_are_options() -> None:
    with pytest.raises(ValueError, match="name: got 'gpu'"):
        session(TWO_OUTPUTS, backend="gpu")
    with pytest.raises(ValueError, match="0"):
        Session(parser.parse_model(f"{HEADER} g {TWO_OUTPUTS}"), threads=0)
    before = pyq.get_num_threads()
    x = feeds()
    for name in pyq.available_backends():
        model = Session(parser.parse_model(f"{HEADER} g {TWO_OUTPUTS}"), threads=before, backend=name)
        np.testing.assert_array_equal(model.run(None, x)[0], session(TWO_OUTPUTS).run(None, x)[0])


def test_one_session_in_several_threads() -> None:
    model = session(TWO_OUTPUTS)
    sizes = [1, 2, 3, 4] * 25
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda rows: model.run(None, feeds(rows))[1], sizes))
    for rows, result in zip(sizes, results, strict=True):
        np.testing.assert_array_equal(result, model.run(None, feeds(rows))[1])


def test_the_ocr_model_reads_as_in_onnxruntime() -> None:
    path = find_model()
    ours, theirs = Session(path), onnxruntime.InferenceSession(path)
    assert [node.op_type for node in ours.graph.nodes].count("BatchNormalization") == 0
    assert ours.metadata["character"] == theirs.get_modelmeta().custom_metadata_map["character"]
    for batch, width in ((1, 320), (1, 48), (2, 101)):
        x = np.random.default_rng(width).normal(size=(batch, 3, 48, width)).astype(np.float32)
        [got], [expected] = ours.run(None, {"x": x}), theirs.run(None, {"x": x})
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)
