"""Graph passes: what they remove, what they keep, and that outputs stay the same."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import parser
from onnx.reference import ReferenceEvaluator

from pyq.onnx.export import to_proto
from pyq.onnx.load import load
from pyq.onnx.passes import optimize
from pyq.quantization.graph import Graph

HEADER = '<ir_version: 8, opset_import: ["": 17]>'
RNG = np.random.default_rng(0)


def graph(text: str, **constants: np.ndarray) -> Graph:
    """The graph of a model in text; `constants` take the place of its further inputs."""
    loaded = load(parser.parse_model(f"{HEADER} g {text}"))
    loaded.constants.update(constants)
    loaded.inputs = [value for value in loaded.inputs if value.name not in constants]
    return loaded


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.nodes]


def assert_same_outputs(before: Graph, after: Graph, *shape: int) -> None:
    x = normal(*shape)
    expected = ReferenceEvaluator(to_proto(before)).run(None, {"x": x})
    got = ReferenceEvaluator(to_proto(after)).run(None, {"x": x})
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


CONV = "float[6, 4, 3, 3] w, float[6] b"
NORM = "float[6] s, float[6] o, float[6] m, float[6] v"


def test_a_chain_of_affine_operators_goes_into_the_convolution() -> None:
    before = graph(
        f"""(float[N, 4, H, W] x, {CONV}, {NORM}, float[1, 6, 1, 1] f, float[6, 1, 1] a, float[1] d)
            => (float[N, 6, P, Q] y) {{
            c = Conv <pads = [1, 1, 1, 1]>(x, w, b)
            n = BatchNormalization <epsilon = 0.01>(c, s, o, m, v)
            p = Mul(f, n)
            q = Add(p, a)
            r = Sub(d, q)
            y = Div(r, d)
        }}""",
        **{
            "w": normal(6, 4, 3, 3),
            "b": normal(6),
            "s": normal(6),
            "o": normal(6),
            "m": normal(6),
            "v": normal(6) ** 2,
        },
        **{"f": normal(1, 6, 1, 1), "a": normal(6, 1, 1), "d": np.float32([0.7])},
    )
    after = optimize(before)
    assert operators(after) == ["Conv"] and after.nodes[0].outputs == ["y"]
    assert after.nodes[0].inputs[:2] == ["x", "w"]
    assert_same_outputs(before, after, 2, 4, 5, 7)


@pytest.mark.parametrize("group", [1, 2])
def test_a_transposed_convolution_takes_them_too(group: int) -> None:
    before = graph(
        f"""(float[N, 4, H, W] x, float[4, {6 // group}, 3, 3] w, {NORM}, float[1, 6, 1, 1] f)
            => (float[N, 6, P, Q] y) {{
            c = ConvTranspose <strides = [2, 2], group = {group}>(x, w)
            n = BatchNormalization(c, s, o, m, v)
            y = Mul(n, f)
        }}""",
        **{"w": normal(4, 6 // group, 3, 3), "s": normal(6), "o": normal(6), "m": normal(6), "v": normal(6) ** 2},
        f=normal(1, 6, 1, 1),
    )
    after = optimize(before)
    assert operators(after) == ["ConvTranspose"] and after.nodes[0].outputs == ["y"]
    x = normal(2, 4, 5, 7)  # by ONNX Runtime: onnx.reference takes other weights for the second group
    sessions = [onnxruntime.InferenceSession(to_proto(g).SerializeToString()) for g in (before, after)]
    [expected], [got] = (session.run(None, {"x": x}) for session in sessions)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_folding_rounds_once_from_float64() -> None:
    weights = {"w": normal(6, 4, 1, 1), "s": normal(6), "o": normal(6), "m": normal(6), "v": normal(6) ** 2}
    before = graph(
        f"""(float[N, 4, H, W] x, float[6, 4, 1, 1] w, {NORM}) => (float[N, 6, H, W] y) {{
            c = Conv(x, w)
            y = BatchNormalization(c, s, o, m, v)
        }}""",
        **weights,
    )
    after = optimize(before)
    w, s, o, m, v = (array.astype(np.float64) for array in weights.values())
    factor = s / np.sqrt(v + 1e-5)
    weight, bias = (after.constants[name] for name in after.nodes[0].inputs[1:])
    np.testing.assert_array_equal(weight, (w * factor[:, None, None, None]).astype(np.float32))
    np.testing.assert_array_equal(bias, (o - m * factor).astype(np.float32))


def test_a_shared_weight_is_not_changed_for_others() -> None:
    before = graph(
        """(float[N, 2, H] x, float[2, 2, 1] w, float[1] f) => (float[N, 2, H] y) {
            a = Conv(x, w)
            b = Conv(x, w)
            c = Mul(b, f)
            y = Add(a, c)
        }""",
        w=normal(2, 2, 1),
        f=np.float32([3]),
    )
    after = optimize(before)
    assert operators(after) == ["Conv", "Conv", "Add"]
    assert_same_outputs(before, after, 1, 2, 5)


def test_new_constants_take_no_name_that_exists() -> None:
    before = graph(
        """(float[N, 2, H] x, float[2, 2, 1] w, float[2] b, float[2, 1] y_bias)
            => (float[N, 2, H] y, float[N, 2, H] z, float[2] b) {
            a = Conv(x, w, b)
            y = Mul(a, y_bias)
            z = Mul(x, y_bias)
        }""",
        w=normal(2, 2, 1),
        b=normal(2),
        y_bias=normal(2, 1),
    )
    after = optimize(before)
    assert operators(after) == ["Conv", "Mul"] and after.nodes[0].inputs == ["x", "w", "y_bias_"]
    assert_same_outputs(before, after, 1, 2, 5)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("c = Conv(x, w) m = Mul(c, f) y = Add(c, m)", "the value is read twice"),
        ("c = Conv(x, w) y = Mul(c, c)", "the operand is no constant"),
        ("c = Conv(x, w) y = Div(f, c)", "a quotient is not affine in its divisor"),
        ("c = Conv(x, w) y = Mul(c, k)", "the constant differs along a spatial axis"),
        ("c = Conv(x, w) y = Mul(c, r)", "the constant has more dimensions than the value"),
        ("c = Conv(x, z) y = Mul(c, f)", "the weight is no constant"),
    ],
)
def test_what_is_not_affine_by_channel_stays(body: str, reason: str) -> None:
    constants = {"w": normal(3, 2, 1), "f": np.float32([3]), "k": normal(1, 1, 3), "r": normal(1, 1, 1, 1)}
    before = graph(
        f"""(float[2, 2, 3] x, float[3, 2, 1] z, float[3, 2, 1] w, float[1] f, float[1, 1, 3] k, float[1, 1, 1, 1] r)
            => (float[?, 3, 3] y) {{ {body} }}""",
        **constants,
    )
    assert operators(optimize(before)) == operators(before), reason


def test_a_convolution_that_is_an_output_stays() -> None:
    before = graph(
        """(float[N, 2, H] x, float[2, 2, 1] w, float[1] f) => (float[N, 2, H] y, float[N, 2, H] c) {
            c = Conv(x, w)
            y = Mul(c, f)
        }""",
        w=normal(2, 2, 1),
        f=np.float32([3]),
    )
    assert operators(optimize(before)) == ["Conv", "Mul"]


def test_constants_are_folded() -> None:
    before = graph(
        """(float[N, 6] x) => (float[N, 2, 3] y) {
            a = Constant <value_ints = [5, 2, 3]> ()
            s = Constant <value_ints = [1]> ()
            e = Constant <value_ints = [3]> ()
            tail = Slice(a, s, e)
            any = Constant <value_floats = [-1.0]> ()
            head = Cast <to = 7>(any)
            shape = Concat <axis = 0>(head, tail)
            y = Reshape(x, shape)
        }"""
    )
    after = optimize(before)
    assert operators(after) == ["Reshape"] and set(after.constants) == {"shape"}
    assert_same_outputs(before, after, 2, 6)


def test_static_shapes_are_folded_and_dynamic_ones_are_not() -> None:
    text = """(float[{}, 6] x) => (int64[2] y, int64 z) {{
        t = Transpose <perm = [1, 0]>(x)
        y = Shape(t)
        z = Size(t)
    }}"""
    static = optimize(graph(text.format(4)))
    assert static.nodes == [] and static.constants["y"].tolist() == [6, 4] and static.constants["z"] == 24
    assert operators(optimize(graph(text.format("N")))) == ["Transpose", "Shape", "Size"]


def test_a_dynamic_shape_that_later_becomes_static_is_folded() -> None:
    before = graph(
        """(float[N, 6] x, float[1] k) => (int64[1] y) {
            m = ReduceMax <axes = [0], keepdims = 0>(x)
            y = Shape(m)
        }""",
        k=np.float32([1]),
    )
    after = optimize(before)
    assert after.nodes == [] and after.constants["y"].tolist() == [6]


def test_int8_weights_and_random_operators_are_not_folded() -> None:
    before = graph(
        """(float[N, 2] x, int8[2, 2] w, float s) => (float[N, 2] y) {
            f = DequantizeLinear(w, s)
            m = MatMul(x, f)
            r = RandomNormal <shape = [2]> ()
            y = Add(m, r)
        }""",
        w=np.ones((2, 2), np.int8),
        s=np.array(0.5, np.float32),
    )
    assert sorted(operators(optimize(before))) == ["Add", "DequantizeLinear", "MatMul", "RandomNormal"]


def test_no_ops_disappear_and_names_stay() -> None:
    before = graph(
        """(float[N] x) => (float[N] y, float[N] same) {
            a = Identity(x)
            b = Relu(a)
            c = Dropout(b)
            d = Identity(c)
            y = Neg(d)
            same = Identity(y)
        }"""
    )
    after = optimize(before)
    assert [(node.op_type, node.inputs, node.outputs) for node in after.nodes] == [
        ("Relu", ["x"], ["b"]),
        ("Neg", ["b"], ["y"]),
        ("Identity", ["y"], ["same"]),
    ]
    assert operators(before)[0] == "Identity", "the graph given is not changed"


def test_values_that_subgraphs_read_keep_their_names() -> None:
    before = graph(
        """(bool p, float[N] x) => (float[N] y) {
            a = Identity(x)
            y = If (p) <then_branch = t () => (float[N] u) { u = Neg(a) },
                        else_branch = e () => (float[N] v) { v = Abs(a) }>
        }"""
    )
    assert operators(optimize(before)) == ["Identity", "If"]


def test_training_dropout_and_normalization_stay() -> None:
    before = graph(
        """(float[2, 3, 4] x, float[3, 3, 1] w, float[3] s) => (float[2, 3, 4] y, float[2, 3, 4] z) {
            ratio = Constant <value_float = 0.5> ()
            on = Constant <value = bool {1}> ()
            y = Dropout(x, ratio, on)
            c = Conv(x, w)
            z, mean, variance = BatchNormalization <training_mode = 1>(c, s, s, s, s)
        }""",
        w=normal(3, 3, 1),
        s=np.ones(3, np.float32),
    )
    assert operators(optimize(before)) == ["Dropout", "Conv", "BatchNormalization"]


def test_dead_nodes_and_constants_are_dropped() -> None:
    before = graph("(float[N] x) => (float[N] y) { dead = Exp(x) deader = Neg(dead) y = Relu(x) }", k=normal(3))
    after = optimize(before)
    assert operators(after) == ["Relu"] and after.constants == {}


def test_broken_constant_expressions_name_the_node() -> None:
    before = graph(
        "(float[N] x) => (float[N] y) { s = Add(a, b) y = Mul(x, s) }".replace("x)", "x, float[2] a, float[3] b)", 1),
        a=normal(2),
        b=normal(3),
    )
    with pytest.raises(ValueError, match=r"node 's' \(Add\)"):
        optimize(before)
