"""Reading ONNX models into graphs, and writing graphs as models."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from pyq.errors import FormatError, UnsupportedOperator
from pyq.onnx import Session
from pyq.onnx.export import save, to_proto
from pyq.onnx.load import load
from pyq.quantization.graph import Graph, Node, ValueInfo

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def model(text: str, header: str = HEADER) -> onnx.ModelProto:
    return parser.parse_model(f"{header} g {text}")


def test_nodes_constants_and_values() -> None:
    graph = load(model("(float[N, 3] x) => (float[?, 3] y) <float[3] w = {1, 2, 3}> { y = Mul(x, w) }"))
    assert [(node.op_type, node.inputs, node.outputs) for node in graph.nodes] == [("Mul", ["x", "w"], ["y"])]
    np.testing.assert_array_equal(graph.constants["w"], np.float32([1, 2, 3]))
    assert graph.inputs == [ValueInfo("x", np.dtype("float32"), ("N", 3))]
    assert graph.outputs[0].shape == (None, 3)
    assert graph.opset == 17


def test_attributes_are_python_values() -> None:
    text = '(float[N] x) => (float[M] y) { y = Foo <a = 1, b = 0.5, c = "s", d = [1, 2], e = float[2] {3, 4}>(x) }'
    proto = model(text, '<ir_version: 8, opset_import: ["": 17, "com.example": 2]>')
    proto.graph.node[0].domain = "com.example"
    graph = load(proto)
    attributes = graph.nodes[0].attributes
    np.testing.assert_array_equal(attributes.pop("e"), np.float32([3, 4]))
    assert attributes == {"a": 1, "b": 0.5, "c": "s", "d": [1, 2]}
    assert graph.domains == {"com.example": 2}


def test_weights_in_constant_nodes_become_constants() -> None:
    graph = load(
        model(
            """(float[N] x) => (float[N] y) {
                a = Constant <value_float = 2.0> ()
                b = Constant <value_ints = [0]> ()
                c = Constant <value = float[1] {3}> ()
                d = Unsqueeze(a, b)
                e = Mul(d, c)
                y = Mul(x, e)
            }"""
        )
    )
    assert {name: (array.dtype.name, array.tolist()) for name, array in graph.constants.items()} == {
        "a": ("float32", 2.0),
        "b": ("int64", [0]),
        "c": ("float32", [3.0]),
    }


def test_an_initializer_that_is_an_input_too_is_a_constant() -> None:
    graph = load(model("(float[1] x, float[1] w) => (float[1] y) <float[1] w = {2}> { y = Mul(x, w) }"))
    assert [value.name for value in graph.inputs] == ["x"]


def test_a_sparse_initializer_becomes_dense() -> None:
    proto = model("(float[2, 3] x) => (float[2, 3] y) { y = Mul(x, w) }")
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5, 7]), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.int64([1, 5])))
    sparse.dims.extend([2, 3])
    np.testing.assert_array_equal(load(proto).constants["w"], np.float32([[0, 5, 0], [0, 0, 7]]))


def test_local_functions_are_inlined() -> None:
    proto = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17, "local": 1]>
        g (float[N] x) => (float[N] y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""
    )
    assert [node.op_type for node in load(proto).nodes] == ["Add"]


def test_captured_values_are_listed() -> None:
    graph = load(
        model(
            """(bool c, float[N] x, float[N] z) => (float[N] y) {
                a = Relu(x)
                y = If (c) <then_branch = t () => (float[N] u) { u = Neg(a) },
                            else_branch = e () => (float[N] v) { v = Add(z, z) }>
            }"""
        )
    )
    assert graph.nodes[1].captures == ["a", "z"]
    assert [node.op_type for node in graph.consumers()["a"]] == ["If"]


@pytest.mark.parametrize("opset", [9, 10, 11, 12])
def test_older_opsets_are_converted(opset: int) -> None:
    header = f'<ir_version: 6, opset_import: ["": {opset}]>'
    graph = load(
        model(
            "(float[2, 3] x) => (float[2, 3, 1] y) { a = Softmax <axis = 1>(x) y = Unsqueeze <axes = [2]>(a) }", header
        )
    )
    assert graph.opset >= 13
    [unsqueeze] = [node for node in graph.nodes if node.op_type == "Unsqueeze"]
    assert graph.constants[unsqueeze.inputs[1]].tolist() == [2]


def test_what_cannot_be_converted_is_named() -> None:
    values = "(float[2, 1, 3] x, float[1, 8, 3] w, float[1, 8, 2] r) => (float[a, b, c, d] y)"
    text = values + " { y = LSTM <hidden_size = 2>(x, w, r) }"
    with pytest.raises(UnsupportedOperator, match=r"'y': operator LSTM of opset 5 .* converting the model to opset 13"):
        load(model(text, '<ir_version: 6, opset_import: ["": 5]>'))


def test_external_data_is_read(tmp_path: Path) -> None:
    proto = model("(float[N, 64] x) => (float[N, 64] y) { y = MatMul(x, w) }")
    weight = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    np.testing.assert_array_equal(load(path).constants["w"], weight)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(FormatError, match=r"model\.onnx is not a valid ONNX model.*weights\.bin"):
        load(path)


def valid_bytes() -> bytes:
    return model("(float[N] x) => (float[N] y) { y = Relu(x) }").SerializeToString()


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x00" * 100, valid_bytes()[:-20]])
def test_broken_files_are_format_errors(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        with pytest.raises(FormatError):
            load(source)


def test_every_damage_is_a_documented_error() -> None:
    """Whatever one byte of a file becomes, loading and running it raises nothing but what is documented."""
    graph = load(
        model("(float[1,1,3,3] x) => (float[1,1,3,3] y) <float[1,1,1,1] w = {2}> { a = Conv(x, w) y = Relu(a) }")
    )
    data = to_proto(graph).SerializeToString()
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= int(rng.integers(1, 256))
        with contextlib.suppress(ValueError, UnsupportedOperator):  # FormatError is a ValueError
            Session(bytes(damaged)).run(None, {"x": np.ones((1, 1, 3, 3), np.float32)})


@pytest.mark.parametrize(
    "text",
    [
        "(float[N] x) => (float[N] y) { y = Relu(missing) }",
        "(float[N] x) => (float[N] y) { a = Relu(b) b = Relu(a) y = Relu(x) }",
        "(float[N] x) => (float[N] y) { y = NoSuchOperator(x) }",
        "(float[N] x) => (float[N] y) { z = Relu(x) }",
        "(float[N] x) => (float[N] y) { y = Conv() }",
    ],
)
def test_broken_graphs_are_format_errors(text: str) -> None:
    with pytest.raises(FormatError):
        load(model(text))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.onnx")


@pytest.mark.parametrize("name", ["light_shufflenet", "light_resnet50", "light_inception_v2"])
def test_export_is_accepted_and_computes_the_same(name: str, tmp_path: Path) -> None:
    graph = load(LIGHT / f"{name}.onnx")
    path = tmp_path / "again.onnx"
    save(graph, path)
    again = load(path)
    assert [(n.op_type, n.inputs, n.outputs, n.name) for n in again.nodes] == [
        (n.op_type, n.inputs, n.outputs, n.name) for n in graph.nodes
    ]
    assert again.inputs == graph.inputs and again.outputs == graph.outputs
    feeds = {graph.inputs[0].name: np.zeros((1, 3, 224, 224), np.float32)}
    expected = onnxruntime.InferenceSession(LIGHT / f"{name}.onnx").run(None, feeds)
    np.testing.assert_array_equal(onnxruntime.InferenceSession(path).run(None, feeds), expected)


def test_export_keeps_metadata_domains_and_empty_lists(tmp_path: Path) -> None:
    values = [ValueInfo(name, np.dtype("float32"), ("N", 3)) for name in "xy"]
    nodes = [
        Node("ReduceSum", ["x"], ["s"], {"keepdims": 1}),
        Node("ScatterLike", ["x", "s"], ["y"], domain="com.example"),
    ]
    graph = Graph(nodes, {}, values[:1], values[1:], 13, metadata={"character": "a\nb"}, domains={"com.example": 3})
    again = load(to_proto(graph))
    assert again.metadata == {"character": "a\nb"} and again.domains == {"com.example": 3}
    graph = Graph([Node("Unsqueeze", ["x"], ["y"], {"axes": []})], {}, values[:1], values[1:], 11)
    assert to_proto(graph).graph.node[0].attribute[0].type == onnx.AttributeProto.INTS


def test_export_sorts_nodes() -> None:
    values = [ValueInfo(name, np.dtype("float32"), ("N",)) for name in "xy"]
    graph = Graph([Node("Relu", ["a"], ["y"]), Node("Neg", ["x"], ["a"])], {}, values[:1], values[1:], 13)
    assert [node.op_type for node in to_proto(graph).graph.node] == ["Neg", "Relu"]
    graph.nodes[1].inputs = ["y"]
    with pytest.raises(ValueError, match="cycle"):
        to_proto(graph)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    values = [ValueInfo(name, np.dtype("float32"), ("N",)) for name in "xy"]
    with pytest.raises(onnx.checker.ValidationError):
        save(Graph([Node("NoSuchOperator", ["x"], ["y"])], {}, values[:1], values[1:], 13), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_strided_constants_are_written_right() -> None:
    values = [ValueInfo("y", np.dtype("float32"), (3, 2))]
    constants = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.ones((3, 4), np.float32)[:, ::2]}
    graph = Graph([Node("Add", ["a", "b"], ["y"])], constants, [], values, 13)
    for name, array in load(to_proto(graph)).constants.items():
        np.testing.assert_array_equal(array, constants[name])


def test_values_of_other_kinds_have_no_dtype() -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    proto = helper.make_model(
        helper.make_graph([node], "g", [value], [sequence]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    graph = load(proto)
    assert graph.inputs[0] == ValueInfo("x", np.dtype("float32"), None)
    assert graph.outputs[0] == ValueInfo("y")
    with pytest.raises(ValueError, match="'y' is not a tensor"):
        to_proto(graph)
