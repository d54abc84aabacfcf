"""Float operators against onnx.reference, and real networks against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_node import OPSET, run_node

from pyq.errors import UnsupportedOperator
from pyq.onnx import Session
from pyq.onnx.float_ops import FLOAT_OPS, FloatStep
from pyq.onnx.float_ops_conv import conv
from pyq.onnx.step import Fresh
from pyq.quantization.float_elementwise import ELEMENTWISE, erf
from pyq.quantization.graph import Graph, Node
from pyq.reference import conv_float

RNG = np.random.default_rng(0)
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def run(op_type: str, *inputs: np.ndarray | None, outputs: int = 1, **attributes: Any) -> Any:
    """Outputs of a node, by the float step."""
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(inputs)]
    node = Node(op_type, names, [f"y{i}" for i in range(outputs)], attributes, "node")
    with np.errstate(all="ignore"):
        results = FloatStep(node, Graph([node], {}, [], [], OPSET)).run([x for x in inputs if x is not None], Fresh())
    return results[0] if outputs == 1 else results


def assert_matches(op_type: str, *inputs: np.ndarray | None, outputs: int = 1, **attributes: Any) -> None:
    assert op_type in FLOAT_OPS
    got = run(op_type, *inputs, outputs=outputs, **attributes)
    expected = run_node(op_type, *inputs, outputs=outputs, **attributes)
    for a, b in zip([got] if outputs == 1 else got, [expected] if outputs == 1 else expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6)


UNARY = sorted(set(ELEMENTWISE) - {"Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Swish"})


@pytest.mark.parametrize("op_type", UNARY)
def test_unary(op_type: str) -> None:
    x = normal(3, 100) * 4
    if op_type in ("Log", "Sqrt", "Acosh"):
        x = np.abs(x) + 1
    if op_type in ("Acos", "Asin", "Atanh"):
        x = np.tanh(x) * np.float32(0.9)
    assert_matches(op_type, x)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("LeakyRelu", {"alpha": 1.5}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.25}),
        ("Elu", {"alpha": 2.0}),
        ("Selu", {"alpha": 1.5, "gamma": 2.0}),
        ("Celu", {"alpha": 0.5}),
        ("ThresholdedRelu", {"alpha": 0.7}),
        ("Gelu", {"approximate": "tanh"}),
    ],
)
def test_attributes_of_activations(op_type: str, attributes: dict[str, Any]) -> None:
    assert_matches(op_type, normal(3, 100) * 3, **attributes)


def test_swish_is_x_times_sigmoid() -> None:
    x = normal(50)
    np.testing.assert_allclose(run("Swish", x, alpha=2.0), x * run("Sigmoid", 2 * x), rtol=1e-6)


def test_erf_is_accurate() -> None:
    x = np.linspace(-6, 6, 100_001)
    exact = erf(x)
    assert np.abs(erf(x.astype(np.float32)) - exact).max() < 5e-7
    np.testing.assert_allclose(exact[[0, 50_000, -1]], [-1, 0, 1], atol=1e-15)


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((1,), (2, 1)), ((), (3,))])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Pow", "PRelu", "Max", "Min", "Less", "Equal"])
def test_broadcasting(op_type: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = (np.abs(normal(*shape)) + np.float32(0.1) for shape in shapes)
    if op_type == "PRelu" and np.broadcast_shapes(*shapes) != shapes[0]:
        a = normal(*np.broadcast_shapes(*shapes))
    assert_matches(op_type, a, b)


def test_integers_divide_towards_zero() -> None:
    a, b = np.array([7, -7, 7, -7, 6], np.int32), np.array([2, 2, -2, -2, -3], np.int32)
    assert run("Div", a, b).tolist() == [3, -3, -3, 3, -2]
    assert run("Pow", a, np.array(2, np.int64)).tolist() == [49, 49, 49, 49, 36]
    assert run("Mod", a, b).tolist() == [1, 1, -1, -1, 0]
    assert run("Mod", a, b, fmod=1).tolist() == [1, -1, 1, -1, 0]


@pytest.mark.parametrize("bounds", [(None, None), (-1, None), (None, 1), (-1, 1), (1, -1)])
def test_clip(bounds: tuple[float | None, float | None]) -> None:
    low, high = (None if bound is None else np.array(bound, np.float32) for bound in bounds)
    assert_matches("Clip", normal(50) * 2, low, high)


REDUCTIONS = [name for name in FLOAT_OPS if name.startswith("Reduce")]


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [None, ints(1), ints(-1, 0), ints()])
def test_reductions(op_type: str, axes: np.ndarray | None, keepdims: int) -> None:
    x = np.abs(normal(2, 3, 4)) + np.float32(0.5)
    assert_matches(op_type, x, axes, keepdims=keepdims)
    if axes is not None and axes.size:  # as an attribute, before opset 18
        y = run(op_type, x, axes=axes.tolist(), keepdims=keepdims)
        np.testing.assert_array_equal(y, run(op_type, x, axes, keepdims=keepdims))


def test_reductions_of_nothing() -> None:
    x = normal(2, 3)
    np.testing.assert_array_equal(run("ReduceSum", x, ints(), noop_with_empty_axes=1), x)
    assert run("ReduceMax", np.zeros((0, 2), np.float32), ints(0), keepdims=0).tolist() == [-np.inf] * 2
    assert run("ReduceMin", np.zeros((0, 2), np.int32), ints(0), keepdims=0).tolist() == [2**31 - 1] * 2


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
def test_arg_max_and_min(op_type: str, last: int) -> None:
    x = np.array([[1, 3, 3, 1], [2, 2, 0, 0]], np.float32)
    assert_matches(op_type, x, axis=1, select_last_index=last)
    assert_matches(op_type, x, axis=-1, keepdims=0, select_last_index=last)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_softmax(op_type: str, axis: int) -> None:
    assert_matches(op_type, normal(3, 4, 5) * 5, axis=axis)
    large = run(op_type, normal(3, 4, 5) * 1000, axis=axis)
    assert np.isfinite(large).all()


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalization(axis: int) -> None:
    x, shape = normal(2, 3, 5), (5,) if axis == -1 else (3, 5)
    assert_matches("LayerNormalization", x, normal(*shape), normal(*shape), axis=axis, epsilon=0.01)
    assert_matches("LayerNormalization", x, normal(*shape), axis=axis, outputs=3)


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_gemm(transposed: tuple[int, int]) -> None:
    a = normal(5, 3) if transposed[0] else normal(3, 5)
    b = normal(4, 5) if transposed[1] else normal(5, 4)
    settings = {"transA": transposed[0], "transB": transposed[1]}
    for c in (None, normal(4), normal(3, 1), normal(3, 4)):
        assert_matches("Gemm", a, b, c, **settings)
        assert_matches("Gemm", a, b, c, alpha=0.5, beta=2.0, **settings)


def test_batch_normalization() -> None:
    statistics = normal(3), normal(3), normal(3), normal(3) ** 2
    assert_matches("BatchNormalization", normal(2, 3, 4, 5), *statistics, epsilon=0.01)


CONVOLUTIONS: list[tuple[tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = [
    ((2, 3, 9), (4, 3, 3), 1, {"pads": [1, 2]}),
    ((1, 4, 9), (4, 1, 5), 4, {"strides": [2], "dilations": [2], "pads": [4, 4]}),
    ((2, 8, 5, 6), (5, 8, 1, 1), 1, {}),
    ((2, 8, 5, 6), (5, 8, 1, 1), 1, {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
    ((1, 3, 20, 31), (7, 3, 3, 5), 1, {"strides": [2, 1], "pads": [1, 2, 1, 2]}),
    ((1, 6, 9, 9), (4, 3, 3, 3), 2, {"dilations": [2, 1], "pads": [2, 1, 2, 1]}),
    ((2, 6, 9, 40), (6, 1, 5, 5), 6, {"pads": [2, 2, 2, 2]}),
    ((1, 40, 7, 9), (40, 1, 3, 3), 40, {"strides": [2, 3], "dilations": [1, 2], "pads": [1, 3, 0, 2]}),
    ((1, 4, 7, 3), (4, 1, 3, 3), 4, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((1, 4, 7, 8), (8, 1, 3, 3), 4, {"auto_pad": "SAME_LOWER"}),
    ((1, 4, 7, 8), (8, 2, 2, 3), 2, {"auto_pad": "VALID"}),
    ((1, 3, 5, 6, 7), (4, 3, 2, 3, 3), 1, {"strides": [1, 2, 2], "pads": [0, 1, 1, 1, 1, 1]}),
    ((1, 4, 5, 6, 11), (4, 1, 2, 3, 3), 4, {"pads": [0, 1, 1, 1, 1, 1]}),
    ((1, 1, 4, 4), (1, 1, 3, 3), 1, {}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "group", "attributes"), CONVOLUTIONS)
def test_convolutions(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], group: int, attributes: dict[str, Any]
) -> None:
    x, w, b = normal(*x_shape), normal(*w_shape), normal(w_shape[0])
    for bias in (None, b):
        got = run("Conv", x, w, bias, group=group, **attributes)
        expected = run_node("Conv", x, w, bias, group=group, **attributes)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    channels_last = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    got = run("Conv", channels_last, w, b, group=group, **attributes)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "attributes"),
    [
        ((2, 3, 9), (3, 4, 3), {"strides": [2], "pads": [1, 0]}),
        ((1, 3, 5, 4), (3, 2, 3, 3), {"strides": [3, 2], "pads": [1, 2, 0, 1], "output_padding": [1, 1]}),
        ((1, 3, 5, 4), (3, 2, 3, 2), {"dilations": [2, 3]}),
        ((1, 3, 5, 4), (3, 2, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ((1, 3, 5, 4, 3), (3, 2, 2, 3, 2), {"strides": [2, 1, 3], "pads": [0, 1, 0, 1, 0, 0]}),
    ],
)
def test_transposed_convolutions(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    x, w = normal(*x_shape), normal(*w_shape)
    for bias in (None, normal(w_shape[1])):
        got, expected = (
            run("ConvTranspose", x, w, bias, **attributes),
            run_node("ConvTranspose", x, w, bias, **attributes),
        )
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_groups_of_a_transposed_convolution_are_independent() -> None:
    x, w = normal(2, 6, 5, 4), normal(6, 3, 2, 2)
    halves = [run("ConvTranspose", x[:, half], w[half], strides=[2, 1]) for half in (slice(0, 3), slice(3, 6))]
    got = run("ConvTranspose", x, w, strides=[2, 1], group=2)
    np.testing.assert_allclose(got, np.concatenate(halves, 1), rtol=1e-5, atol=1e-6)


def test_transposed_convolution_of_an_output_shape() -> None:
    x, w = normal(1, 3, 5, 4), normal(3, 2, 3, 3)
    got = run("ConvTranspose", x, w, strides=[2, 2], output_shape=[12, 6], pads=[9, 9, 9, 9])
    expected = run("ConvTranspose", x, w, strides=[2, 2], pads=[0, 2, 0, 1])
    np.testing.assert_array_equal(got, np.pad(expected, [(0, 0), (0, 0), (0, 1), (0, 0)]))


def test_a_convolution_in_slabs_is_the_convolution() -> None:
    x, w = normal(2, 32, 61, 70), normal(8, 32, 3, 3)
    got, expected = conv(x, w, strides=[2, 1], dilations=[2, 1]), conv_float(x, w, None, [2, 1], None, [2, 1])
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_convolution_errors_name_the_node() -> None:
    for shape in ((1, 3, 5, 5), (1, 2, 2, 5), (1, 2, 5)):
        with pytest.raises(ValueError, match=r"node 'node' \(Conv\)"):
            run("Conv", normal(*shape), normal(4, 2, 3, 3))


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("shape", "attributes"),
    [
        ((2, 3, 9), {"kernel_shape": [3], "strides": [2]}),
        ((1, 2, 8, 9), {"kernel_shape": [3, 2], "strides": [3, 2]}),
        ((1, 2, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((1, 2, 8, 9), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0], "ceil_mode": 1}),
        ((1, 2, 8, 9), {"kernel_shape": [2, 2], "dilations": [2, 3]}),
        ((1, 2, 8, 9), {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        ((1, 2, 8, 9), {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
        ((1, 2, 5, 6, 7), {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    ],
)
def test_pools(op_type: str, shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    assert_matches(op_type, normal(*shape), **attributes)


def test_average_of_padding_too() -> None:
    settings: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    assert_matches("AveragePool", normal(1, 2, 6, 6), **settings)
    assert_matches("AveragePool", normal(1, 2, 6, 7), **settings, strides=[2, 2], ceil_mode=1)


def test_pools_of_everything_and_of_integers() -> None:
    assert_matches("GlobalAveragePool", normal(2, 3, 4, 5))
    assert_matches("GlobalMaxPool", normal(2, 3, 4, 5))
    integers = RNG.integers(-128, 128, (1, 2, 5, 5)).astype(np.int8)
    windows = np.lib.stride_tricks.sliding_window_view(integers, (3, 3), (2, 3))
    np.testing.assert_array_equal(run("MaxPool", integers, kernel_shape=[3, 3]), windows.max((-1, -2)))


def test_what_a_function_lacks_runs_in_the_reference() -> None:
    x = normal(1, 1, 4, 4)
    values, places = run("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    np.testing.assert_array_equal(x.ravel()[places], values)


SHAPES: list[tuple[str, list[np.ndarray | None], dict[str, Any]]] = [
    ("Cast", [normal(5)], {"to": onnx.TensorProto.INT32}),
    ("Cast", [np.array([0.0, 2.5])], {"to": onnx.TensorProto.BOOL}),
    ("Concat", [normal(2, 3), normal(2, 1)], {"axis": -1}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("ConstantOfShape", [ints()], {"value": np.array([7], np.int64)}),
    ("Expand", [normal(3, 1), ints(2, 1, 4)], {}),
    ("Flatten", [normal(2, 3, 4)], {}),
    ("Flatten", [normal(2, 3, 4)], {"axis": 0}),
    ("Flatten", [normal(2, 3, 4)], {"axis": -1}),
    ("Gather", [normal(3, 4), ints(0, -1)], {}),
    ("Gather", [normal(3, 4), np.array(2, np.int64)], {"axis": 1}),
    ("GatherElements", [normal(2, 4), np.array([[0, -1], [1, 2]], np.int64)], {"axis": 1}),
    ("Identity", [normal(3)], {}),
    ("Not", [np.array([True, False])], {}),
    ("Pad", [normal(2, 3), ints(1, 0, 0, 2)], {}),
    ("Pad", [normal(2, 3), ints(1, 0, 0, 2), np.array(7, np.float32)], {}),
    ("Pad", [normal(4, 5), ints(1, 2, 2, 1)], {"mode": "reflect"}),
    ("Pad", [normal(4, 5), ints(1, 2, 2, 1)], {"mode": "edge"}),
    ("Pad", [normal(2, 3, 4), ints(1, 2), None, ints(-1)], {}),
    ("Range", [np.array(1, np.int64), np.array(8, np.int64), np.array(3, np.int64)], {}),
    ("Reshape", [normal(2, 3, 4), ints(0, -1)], {}),
    ("Reshape", [normal(0, 3), ints(3, 0)], {"allowzero": 1}),
    ("Shape", [normal(2, 3, 4)], {}),
    ("Shape", [normal(2, 3, 4)], {"start": -2, "end": -1}),
    ("Size", [normal(2, 3)], {}),
    ("Slice", [normal(5, 6), ints(1, -3), ints(4, 100)], {}),
    ("Slice", [normal(5, 6), ints(-1), ints(-100), ints(1), ints(-2)], {}),
    ("Slice", [normal(5, 6), ints(4, 0), ints(0, 6), ints(0, -1), ints(-1, 2)], {}),
    ("Slice", [normal(5), ints(100), ints(1), ints(0), ints(-1)], {}),
    ("Squeeze", [normal(1, 2, 1)], {}),
    ("Squeeze", [normal(1, 2, 1), ints(-1)], {}),
    ("Sum", [normal(2, 3), normal(3), normal(2, 1)], {}),
    ("Mean", [normal(2, 3), normal(3)], {}),
    ("Tile", [normal(2, 3), ints(2, 1)], {}),
    ("Transpose", [normal(2, 3, 4)], {}),
    ("Transpose", [normal(2, 3, 4)], {"perm": [0, 2, 1]}),
    ("Unsqueeze", [normal(2, 3), ints(0, -1)], {}),
    ("Where", [np.array([[True], [False]]), normal(2, 3), normal(3)], {}),
]


@pytest.mark.parametrize(("op_type", "inputs", "attributes"), SHAPES)
def test_operators_on_shapes(op_type: str, inputs: list[np.ndarray | None], attributes: dict[str, Any]) -> None:
    if op_type == "ConstantOfShape" and attributes:
        got, value = run(op_type, *inputs, **attributes), onnx.numpy_helper.from_array(attributes["value"])
        np.testing.assert_array_equal(got, run_node(op_type, *inputs, value=value))
    else:
        assert_matches(op_type, *inputs, **attributes)


def test_what_onnx_reference_cannot_do() -> None:
    assert run("Flatten", np.zeros((2, 0, 4)), axis=2).shape == (0, 4)
    assert run("Flatten", np.zeros((2, 0, 4)), axis=1).shape == (2, 0)
    cropped = run("Pad", np.float32([[1, 2, 3]]), ints(1, -1, 0, 1), np.array(7, np.float32))
    assert cropped.tolist() == [[7, 7, 7], [2, 3, 7]]
    assert run("GatherElements", np.arange(12).reshape(3, 4), ints([3, 0]), axis=1).tolist() == [[3, 0]]
    pooled = run("MaxPool", np.array([[[-7, -9]]], np.int8), kernel_shape=[2], pads=[1, 0])
    assert pooled.tolist() == [[[-7, -7]]]


@pytest.mark.parametrize("count", [2, 3])
def test_split(count: int) -> None:
    x = normal(7, 2)
    for a, b in zip(
        run("Split", x, outputs=count), run_node("Split", x, outputs=count, num_outputs=count), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    sizes = ints(1, 4, 2)[:count] if count == 3 else ints(3, 4)
    assert_matches("Split", x, sizes, outputs=count)


def test_unknown_operators_are_refused_when_the_step_is_made() -> None:
    node = Node("Frobnicate", ["x"], ["y"], name="this one", domain="com.example")
    with pytest.raises(UnsupportedOperator, match=r"'this one': operator com\.example\.Frobnicate of opset 2"):
        FloatStep(node, Graph([node], {}, [], [], 17, domains={"com.example": 2}))


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet", "densenet121"])
def test_real_networks_match_onnxruntime(name: str) -> None:
    path = LIGHT / f"light_{name}.onnx"
    proto = onnx.load(path)
    scale_weights(proto)
    session, other = Session(proto), onnxruntime.InferenceSession(proto.SerializeToString())
    feeds = {session.get_inputs()[0].name: normal(1, 3, 224, 224)}
    for a, b in zip(session.run(None, feeds), other.run(None, feeds), strict=True):
        assert np.abs(b).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(np.abs(b).max()))


def scale_weights(proto: onnx.ModelProto) -> None:
    """Give the network random weights: the file's are constants, all alike, which would hide wrong orders."""
    proto.ir_version = 8
    made = {output: node for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            filler = made[node.input[1]]
            shape = onnx.numpy_helper.to_array(initializer(proto, filler.input[0]))
            weight = normal(*shape) / np.float32(np.sqrt(np.prod(shape[1:])))
            proto.graph.node.remove(filler)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, node.input[1]))


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)
