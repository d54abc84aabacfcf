"""What becomes of the patterns of a QDQ graph, and that the fused graph computes the same bits as the unfused one.

All scales are powers of two and all products are short, so that the unfused graph, which works in float32, has no
rounding that the int8 kernels do not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import pyq
from pyq.onnx.float_ops import FloatStep
from pyq.onnx.integer_steps import int8_step
from pyq.onnx.plan import Plan
from pyq.onnx.qdq import DOMAIN, fuse
from pyq.quantization.graph import Graph, Node, ValueInfo

IMAGE = (2, 8, 9, 11)


class Builder:
    """A graph with the input `x`, built node by node."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"{op_type}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(Node(op_type, list(inputs), names, attributes, names[0]))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype)
        return name

    def params(self, scale: Any, zero_point: Any, dtype: str) -> tuple[str, str]:
        return self.constant(scale), self.constant(zero_point, dtype)

    def quantize(self, value: str, scale: float = 2**-6, zero_point: int = 119, dtype: str = "uint8") -> str:
        return self.op("QuantizeLinear", value, *self.params(scale, zero_point, dtype))

    def dequantize(self, value: str, scale: float = 2**-6, zero_point: int = 119, dtype: str = "uint8") -> str:
        return self.op("DequantizeLinear", value, *self.params(scale, zero_point, dtype))

    def pair(self, value: str, scale: float = 2**-6, zero_point: int = 119, dtype: str = "uint8") -> str:
        """`value` through a QuantizeLinear and a DequantizeLinear."""
        quantized = self.quantize(value, scale, zero_point, dtype)
        return self.dequantize(quantized, scale, zero_point, dtype)

    def weight(self, *shape: int, axis: int | None = 0, dtype: str = "int8") -> str:
        limits = np.iinfo(dtype)
        data = self.constant(self.rng.integers(limits.min, limits.max, shape, dtype, endpoint=True), dtype)
        channels = () if axis is None else shape[axis]
        scale = np.ldexp(1.0, self.rng.integers(-9, -6, channels))
        zero_point = self.rng.integers(limits.min, limits.max, channels, endpoint=True)
        attributes = {} if axis is None else {"axis": axis}
        return self.op("DequantizeLinear", data, *self.params(scale, zero_point, dtype), **attributes)

    def graph(self, *outputs: str) -> Graph:
        return Graph(
            self.nodes, self.constants, [ValueInfo("x")], [ValueInfo(name) for name in outputs], opset=21
        )


def run(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the graph as it stands."""
    steps = [int8_step(node, graph) or FloatStep(node, graph) for node in graph.sorted()]
    return list(Plan(steps, graph.output_names).run(feeds).values())


def operators(graph: Graph) -> Counter[str]:
    """How often each operator occurs; int8 ones are called "int8.Conv" and so on."""
    return Counter(f"int8.{node.op_type}" if node.domain == DOMAIN else node.op_type for node in graph.nodes)


def check(graph: Graph, expected: dict[str, int], shape: tuple[int, ...] = IMAGE) -> Graph:
    """The fused graph has the `expected` operators, and equals the unfused one on every backend; returns it."""
    before = operators(graph)
    fused = fuse(graph)
    assert operators(graph) == before, "the graph given was changed"
    assert operators(fused) == expected
    x = np.random.default_rng(1).normal(0, 0.9, shape).astype(np.float32)
    wanted = run(graph, {"x": x})
    assert all(len(np.unique(array)) > 6 for array in wanted), "the scales leave too little to compare"
    for name in ("c", "numba", "reference"):
        with pyq.use_backend(name):
            for y, array in zip(run(fused, {"x": x}), wanted, strict=True):
                assert y.dtype == array.dtype
                np.testing.assert_array_equal(y, array)
    return fused


# A Conv, Gemm or MatMul, what stands around it, and what that becomes.


def product_graph(
    weight: Callable[[Builder], str],
    op_type: str = "Conv",
    bias: Callable[[Builder], str] | None = None,
    tail: Callable[[Builder, str], str] = lambda b, y: b.quantize(y, 2**-1, 125),
    **attributes: Any,
) -> Graph:
    b = Builder()
    inputs = [b.pair("x"), weight(b)]
    if bias is not None:
        inputs.append(bias(b))
    return b.graph(tail(b, b.op(op_type, *inputs, **attributes)))


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "padded": ((6, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "strided, dilated": ((5, 8, 2, 3), {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 2, 3]}),
    "grouped": ((6, 4, 3, 3), {"group": 2}),
    "depthwise": ((8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "SAME_LOWER": ((4, 8, 2, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_conv(name: str, axis: int | None, dtype: str) -> None:
    shape, attributes = CONVOLUTIONS[name]
    graph = product_graph(lambda b: b.weight(*shape, axis=axis, dtype=dtype), **attributes)
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_conv_of_one_dimension() -> None:
    graph = product_graph(lambda b: b.weight(5, 8, 3), pads=[2, 1], strides=[2])
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1}, shape=(2, 8, 21))


def test_conv_of_three_dimensions_stays_float() -> None:
    graph = product_graph(lambda b: b.weight(5, 2, 2, 2, 2))
    check(
        graph,
        {"QuantizeLinear": 2, "DequantizeLinear": 1, "Conv": 1},
        shape=(2, 2, 5, 6, 4),
    )


def int32_bias(b: Builder) -> str:
    """An int32 bias in units of the accumulator: its scale is that of `x` times that of the weight."""
    weight_scale = next(b.constants[node.inputs[1]] for node in b.nodes if node.inputs[0] in b.constants)
    data = b.constant(b.rng.integers(-20000, 20000, 6), np.int32)
    return b.op("DequantizeLinear", data, b.constant(2**-6 * weight_scale), axis=0)


def float_bias(b: Builder) -> str:
    return b.constant(b.rng.integers(-100, 100, 6) / 8)


@pytest.mark.parametrize("axis", [0, None])
@pytest.mark.parametrize("bias", [int32_bias, float_bias])
def test_bias(bias: Callable[[Builder], str], axis: int | None) -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3, axis=axis), bias=bias)
    fused = check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})
    assert fused.nodes[-1].attributes["bias"].dtype == np.int32


def test_bias_beyond_the_accumulator_is_added_in_float() -> None:
    """1e9 in units of 2**-15 does not fit int32: merged, it would wrap around."""
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), bias=lambda b: b.constant([1e9, 0, 1, 2, 3, -1e9]))
    check(graph, {"QuantizeLinear": 2, "int8.Conv": 1})


def relu(b: Builder, y: str) -> str:
    return b.quantize(b.op("Relu", y), 2**-1, 25)


def clip(b: Builder, y: str) -> str:
    return b.quantize(b.op("Clip", y, b.constant(-11.3), b.constant(20.1)), 2**-2, 125)


def clip_without_lower_bound(b: Builder, y: str) -> str:
    return b.quantize(b.op("Clip", y, "", b.constant(20.1)), 2**-1, -5, "int8")


def relu_then_clip(b: Builder, y: str) -> str:
    return b.quantize(b.op("Clip", b.op("Relu", y), b.constant(2.5), b.constant(30)), 2**-2, 0)


@pytest.mark.parametrize("tail", [relu, clip, clip_without_lower_bound, relu_then_clip])
def test_bounds_between_conv_and_quantize(tail: Callable[[Builder, str], str]) -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), bias=float_bias, tail=tail)
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_float_output() -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), bias=float_bias, tail=lambda b, y: y)
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_float_output_with_bounds() -> None:
    graph = product_graph(lambda b: b.weight(6, 8, 3, 3), tail=lambda b, y: b.op("Relu", y))
    fused = check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})
    assert fused.nodes[-1].outputs == graph.output_names


def test_output_that_is_also_read_as_float() -> None:
    graph = product_graph(
        lambda b: b.weight(6, 8, 3, 3), tail=lambda b, y: b.op("Add", b.pair(y, 2**-1, 125), y)
    )
    check(graph, {"QuantizeLinear": 2, "int8.Conv": 1, "DequantizeLinear": 1, "Add": 1})


def test_values_that_are_outputs_stay() -> None:
    b = Builder()
    y = b.op("Conv", b.pair("x"), b.weight(6, 8, 3, 3))
    clamped = b.op("Relu", y)
    graph = b.graph(y, clamped, b.quantize(clamped, 2**-1, 3))
    check(graph, {"QuantizeLinear": 2, "int8.Conv": 1, "Relu": 1})


def hardswish(b: Builder, x: str) -> str:
    gate = b.op("Clip", b.op("Add", x, b.constant(3)), b.constant(0), b.constant(6))
    return b.op("Div", b.op("Mul", x, gate), b.constant(6))


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_table_in_the_epilogue_of_a_conv(dtype: str) -> None:
    """Also when the table changes the integer type."""
    graph = product_graph(
        lambda b: b.weight(6, 8, 3, 3),
        tail=lambda b, y: b.quantize(hardswish(b, b.pair(y, 2**-1, 60)), 2**-1, 7, dtype),
    )
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1})


def test_table_stays_where_its_input_has_another_reader() -> None:
    b = Builder()
    y = b.pair(b.op("Conv", b.pair("x"), b.weight(8, 8, 1, 1)), 2**-1, 60)
    swish = b.pair(hardswish(b, y), 2**-1, 7)
    graph = b.graph(b.quantize(b.op("Add", y, swish), 1.0, 100))
    check(graph, {"QuantizeLinear": 1, "int8.Conv": 1, "int8.Lookup": 1, "int8.Add": 1})


# Matrix products.

ROWS = (3, 4, 24)


@pytest.mark.parametrize("axis", [1, None])
def test_matmul(axis: int | None) -> None:
    graph = product_graph(lambda b: b.weight(24, 10, axis=axis), "MatMul")
    check(graph, {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


@pytest.mark.parametrize("first", [True, False])
def test_matmul_with_bias(first: bool) -> None:
    def add(b: Builder, y: str) -> str:
        bias = b.constant(b.rng.integers(-100, 100, 10) / 8)
        return b.quantize(b.op("Relu", b.op("Add", *((bias, y) if first else (y, bias)))), 2**-1, 25)

    graph = product_graph(lambda b: b.weight(24, 10, axis=1), "MatMul", tail=add)
    check(graph, {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


def test_matmul_with_float_output_and_bias() -> None:
    graph = product_graph(
        lambda b: b.weight(24, 10, axis=1),
        "MatMul",
        tail=lambda b, y: b.op("Add", y, b.constant(b.rng.normal(size=10))),
    )
    check(graph, {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


def test_matmul_by_a_transposed_weight() -> None:
    def weight(b: Builder) -> str:
        return b.op("Transpose", b.weight(10, 24, axis=0), perm=[1, 0])

    check(product_graph(weight, "MatMul"), {"QuantizeLinear": 1, "int8.MatMul": 1}, ROWS)


def test_matmul_quantized_along_its_depth_stays_float() -> None:
    graph = product_graph(lambda b: b.weight(24, 10, axis=0), "MatMul")
    check(graph, {"QuantizeLinear": 2, "DequantizeLinear": 1, "MatMul": 1}, ROWS)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed: int) -> None:
    shape = (6, 24) if transposed else (24, 6)
    graph = product_graph(
        lambda b: b.weight(*shape, axis=1 - transposed), "Gemm", bias=float_bias, transB=transposed
    )
    check(graph, {"QuantizeLinear": 1, "int8.Gemm": 1}, (5, 24))


def test_gemm_with_alpha_stays_float() -> None:
    def tail(b: Builder, y: str) -> str:
        return b.quantize(y, 2**-3, 99)

    graph = product_graph(lambda b: b.weight(24, 6, axis=1), "Gemm", tail=tail, alpha=0.5)
    check(graph, {"QuantizeLinear": 2, "DequantizeLinear": 1, "Gemm": 1}, (5, 24))


# Element-wise operators.


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("b_shape", [IMAGE, (8, 1, 1), (1,), (2, 1, 9, 11)])
def test_binary(op_type: str, b_shape: tuple[int, ...]) -> None:
    b = Builder()
    other = b.constant(b.rng.integers(1, 255, b_shape), np.int8)  # never zero: 0 / 0 is not a number
    right = b.op("DequantizeLinear", other, *b.params(2**-5, 0, "int8"))
    left = b.pair("x", 0.013, 127)
    graph = b.graph(b.quantize(b.op(op_type, left, right), 0.021, 117))
    kind = "int8.Lookup" if b_shape == (1,) else f"int8.{op_type}"
    check(graph, {"QuantizeLinear": 1, kind: 1})


def test_binary_with_relu() -> None:
    b = Builder()
    y = b.op("Relu", b.op("Add", b.pair("x"), b.pair(b.op("Neg", "x"), 2**-5, -3, "int8")))
    check(b.graph(b.quantize(y, 2**-8, 25)), {"Neg": 1, "QuantizeLinear": 2, "int8.Add": 1})


@pytest.mark.parametrize("stored", [True, False])
def test_operator_with_a_number(stored: bool) -> None:
    b = Builder()
    number = b.dequantize(b.constant(77, np.uint8), 2**-4, 0) if stored else b.constant(4.8125)
    graph = b.graph(b.quantize(b.op("Sub", number, b.pair("x")), 2**-5, 3))
    check(graph, {"QuantizeLinear": 1, "int8.Lookup": 1})


def test_region_becomes_a_table() -> None:
    b = Builder()
    graph = b.graph(b.quantize(hardswish(b, b.pair("x")), 2**-7, 50))
    check(graph, {"QuantizeLinear": 1, "int8.Lookup": 1})


def test_region_that_is_not_a_number_somewhere_stays_float() -> None:
    b = Builder()
    magnitude = b.pair(b.op("Abs", "x"), 2**-6, 3)  # integers 0 to 2 do not come, but would be below zero
    graph = b.graph(b.quantize(b.op("Sqrt", magnitude), 2**-7, 0))
    check(graph, {"Abs": 1, "QuantizeLinear": 2, "DequantizeLinear": 1, "Sqrt": 1})


def test_tables_in_a_row_become_one() -> None:
    b = Builder()
    y = b.pair(b.op("Relu", b.pair("x")), 2**-5, -100, "int8")
    y = b.pair(b.op("Tanh", y), 2**-7, 1)
    graph = b.graph(b.quantize(hardswish(b, y), 2**-7, 50))
    check(graph, {"QuantizeLinear": 1, "int8.Lookup": 1})


# Pools, Concat, data movement.


POOLS: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
    "GlobalMaxPool": {},
    "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1},
    "GlobalAveragePool": {},
}


@pytest.mark.parametrize("op_type", POOLS)
@pytest.mark.parametrize("out", [(2**-5, 119, "uint8"), (2**-5, -3, "int8")])
def test_pool(op_type: str, out: tuple[float, int, str]) -> None:
    b = Builder()
    graph = b.graph(b.quantize(b.op(op_type, b.pair("x", 2**-5), **POOLS[op_type]), *out))
    expected = {"QuantizeLinear": 1, f"int8.{op_type}": 1}
    if "Max" in op_type:  # the maximum keeps the parameters of its input
        expected["int8.Lookup" if out[2] == "int8" else "Identity"] = 1
    check(graph, expected)


def test_max_pool_before_a_float_operator() -> None:
    b = Builder()
    graph = b.graph(b.op("Exp", b.op("MaxPool", b.pair("x"), kernel_shape=[2, 2])))
    check(graph, {"QuantizeLinear": 1, "int8.MaxPool": 1, "DequantizeLinear": 1, "Exp": 1})


def test_softmax_between_quantizers() -> None:
    """Its fixed-point exponentials are not those of the float operator: within one step of them."""
    b = Builder()
    graph = b.graph(b.quantize(b.op("Softmax", b.pair("x"), axis=-1), 2**-8, 0))
    fused = fuse(graph)
    assert operators(fused) == {"QuantizeLinear": 1, "int8.Softmax": 1}
    feeds = {"x": np.random.default_rng(1).normal(0, 0.9, IMAGE).astype(np.float32)}
    [y], [expected] = run(fused, feeds), run(graph, feeds)
    assert np.abs(y.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("out", [(2**-6, 119, "uint8"), (2**-5, 3, "int8")])
def test_concat(out: tuple[float, int, str]) -> None:
    b = Builder()
    parts = [b.pair("x"), b.pair(b.op("Neg", "x"), 2**-5, 100), b.pair("x")]
    graph = b.graph(b.quantize(b.op("Concat", *parts, axis=1), *out))
    check(graph, {"Neg": 1, "QuantizeLinear": 3, "int8.Concat": 1})


def test_concat_of_equal_parameters_moves_integers() -> None:
    b = Builder()
    y = b.op("Concat", b.pair("x"), b.pair(b.op("Neg", "x")), axis=1)
    check(b.graph(b.op("Exp", y)), {"Neg": 1, "QuantizeLinear": 2, "Concat": 1, "DequantizeLinear": 1, "Exp": 1})


MOVEMENTS: dict[str, Callable[[Builder, str], str]] = {
    "Reshape": lambda b, x: b.op("Reshape", x, b.constant([2, -1], np.int64)),
    "Transpose": lambda b, x: b.op("Transpose", x, perm=[0, 2, 3, 1]),
    "Unsqueeze": lambda b, x: b.op("Unsqueeze", x, b.constant([0], np.int64)),
    "Flatten": lambda b, x: b.op("Flatten", x, axis=2),
    "Slice": lambda b, x: b.op(
        "Slice", x, b.constant([1, 8], np.int64), b.constant([7, 0], np.int64), b.constant([1, 2], np.int64),
        b.constant([2, -1], np.int64),
    ),
    "Split": lambda b, x: b.op("Split", x, b.constant([3, 5], np.int64), axis=1, outputs=2)[1],
    "Gather": lambda b, x: b.op("Gather", x, b.constant([4, 0, -1], np.int64), axis=2),
    "Expand": lambda b, x: b.op("Expand", x, b.constant([3, 1, 1, 1, 1], np.int64)),
    "Tile": lambda b, x: b.op("Tile", x, b.constant([1, 2, 1, 1], np.int64)),
    "DepthToSpace": lambda b, x: b.op("DepthToSpace", x, blocksize=2),
    "Pad": lambda b, x: b.op("Pad", x, b.constant([0, 0, 1, 2, 0, 0, 3, 4], np.int64)),
    "Resize": lambda b, x: b.op("Resize", x, "", b.constant([1, 1, 2, 2]), mode="nearest"),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVEMENTS)
def test_movement_between_equal_parameters(name: str) -> None:
    b = Builder()
    graph = b.graph(b.quantize(MOVEMENTS[name](b, b.pair("x"))))
    check(graph, {"QuantizeLinear": 1, name: 1, "Identity": 1})


@pytest.mark.parametrize("name", MOVEMENTS)
def test_movement_between_different_parameters(name: str) -> None:
    b = Builder()
    graph = b.graph(b.quantize(MOVEMENTS[name](b, b.pair("x")), 2**-5, 3, "int8"))
    check(graph, {"QuantizeLinear": 1, name: 1, "int8.Lookup": 1})


def test_movement_lets_a_conv_read_integers() -> None:
    b = Builder()
    y = b.op("Transpose", b.op("Reshape", b.pair("x"), b.constant([0, 0, -1], np.int64)), perm=[0, 2, 1])
    graph = b.graph(b.quantize(b.op("Conv", y, b.weight(6, 99, 1)), 2**-1, 125))
    check(graph, {"QuantizeLinear": 1, "Reshape": 1, "Transpose": 1, "int8.Conv": 1})


def test_padding_that_integers_do_not_have_stays_float() -> None:
    b = Builder()
    pads = b.constant([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
    graph = b.graph(b.quantize(b.op("Pad", b.pair("x"), pads, b.constant(0.3))))
    check(graph, {"QuantizeLinear": 2, "Pad": 1, "DequantizeLinear": 1})


def test_embedding_is_gathered_as_integers() -> None:
    b = Builder()
    rows = b.dequantize(b.constant(b.rng.integers(0, 255, (50, 8)), np.uint8))
    row = b.op("Gather", rows, "x")
    graph = b.graph(b.quantize(b.op("MatMul", row, b.weight(8, 12, axis=1)), 2**-2, 125))
    fused = fuse(graph)
    assert operators(fused) == {"Gather": 1, "int8.MatMul": 1}
    feeds = {"x": np.array([3, 49, 0, -1])}
    np.testing.assert_array_equal(run(fused, feeds), run(graph, feeds))


def test_pair_that_changes_nothing_is_dropped() -> None:
    b = Builder()
    graph = b.graph(b.quantize(b.pair(b.pair("x"))))
    check(graph, {"QuantizeLinear": 1, "Identity": 1})


# What is left alone.


def test_parameters_that_are_not_constant() -> None:
    b = Builder()
    scale = b.op("Div", b.op("ReduceMax", b.op("Abs", "x"), keepdims=0), b.constant(127))
    zero_point = b.constant(0, np.int8)
    integers = b.op("QuantizeLinear", "x", scale, zero_point)
    real = b.op("Relu", b.op("DequantizeLinear", integers, scale, zero_point))
    check(
        b.graph(b.quantize(real)),
        {"Abs": 1, "ReduceMax": 1, "Div": 1, "QuantizeLinear": 2, "DequantizeLinear": 1, "Relu": 1},
    )


def test_16_bit_integers_stay_with_the_reference() -> None:
    b = Builder()
    y = b.op("Relu", b.pair("x", 2**-10, 5, "int16"))
    check(b.graph(b.quantize(y)), {"QuantizeLinear": 2, "DequantizeLinear": 1, "Relu": 1})


@pytest.mark.parametrize("op_type", ["Relu", "Add", "Concat", "Conv", "MaxPool"])
def test_integers_of_another_type_than_the_zero_point_are_an_error(op_type: str) -> None:
    """A broken model: bytes are expected and 16-bit integers come."""
    b = Builder()
    x = b.dequantize(b.op("Cast", "x", to=5))
    other = [x] if op_type in ("Add", "Concat") else [b.weight(6, 8, 3, 3)] if op_type == "Conv" else []
    attributes: dict[str, dict[str, Any]] = {"Concat": {"axis": 0}, "MaxPool": {"kernel_shape": [2, 2]}}
    y = b.op(op_type, x, *other, **attributes.get(op_type, {}))
    with pytest.raises((TypeError, ValueError), match="int16"):
        run(fuse(b.graph(b.quantize(y, 2**-4))), {"x": np.zeros(IMAGE, np.float32)})


def test_wrong_channels_are_an_error() -> None:
    graph = fuse(product_graph(lambda b: b.weight(6, 8, 3, 3)))
    with pytest.raises(ValueError, match=r"Conv\d+_0: input of shape \(2, 7, 9, 9\), expected 8 along axis 1"):
        run(graph, {"x": np.zeros((2, 7, 9, 9), np.float32)})
    with pytest.raises(ValueError, match=r"input of shape \(2, 8, 9\), expected 4 dimensions"):
        run(graph, {"x": np.zeros((2, 8, 9), np.float32)})
