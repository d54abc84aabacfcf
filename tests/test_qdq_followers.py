"""What becomes of element-wise operators, pools, Concat and data movement in a QDQ graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qdq_graph import IMAGE, Builder, check, hardswish, operators, run

from pyq.onnx.qdq import fuse

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
