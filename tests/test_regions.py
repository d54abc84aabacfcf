"""Unary regions: what belongs to one, and that evaluating it is the float32 chain."""

from __future__ import annotations

import numpy as np
import pytest

from pyq.quantization.graph import Graph, Node, ValueInfo
from pyq.quantization.regions import Region, unary_regions

SCALARS = {name: np.array(value, np.float32) for name, value in {"three": 3, "zero": 0, "six": 6, "one": [1]}.items()}


def graph(nodes: list[Node], outputs: str, constants: dict[str, np.ndarray] | None = None) -> Graph:
    inputs = [ValueInfo(name) for name in ("x", "z")]
    return Graph(nodes, constants or SCALARS, inputs, [ValueInfo(name) for name in outputs.split()], opset=13)


def hard_swish(x: str, y: str) -> list[Node]:
    return [
        Node("Add", [x, "three"], [f"{y}_a"]),
        Node("Clip", [f"{y}_a", "zero", "six"], [f"{y}_c"]),
        Node("Mul", [x, f"{y}_c"], [f"{y}_m"]),
        Node("Div", [f"{y}_m", "six"], [y]),
    ]


def found(graph: Graph) -> list[tuple[str, str, int]]:
    return [(region.input, region.output, len(region.nodes)) for region in unary_regions(graph)]


def test_hard_swish_written_as_four_operators_is_one_region() -> None:
    assert found(graph(hard_swish("x", "y"), "y")) == [("x", "y", 4)]


def test_a_region_ends_where_two_tensors_meet() -> None:
    nodes = [Node("Add", ["x", "z"], ["s"]), *hard_swish("s", "y"), Node("Mul", ["y", "z"], ["out"])]
    assert found(graph(nodes, "out")) == [("s", "y", 4)]


def test_a_region_goes_on_where_both_tensors_come_from_one() -> None:
    nodes = [Node("Relu", ["x"], ["a"]), Node("Sigmoid", ["x"], ["b"]), Node("Add", ["a", "b"], ["y"])]
    assert found(graph(nodes, "y")) == [("x", "y", 3)]


def test_a_value_read_elsewhere_ends_a_region() -> None:
    nodes = [Node("Relu", ["x"], ["a"]), Node("Tanh", ["a"], ["y"]), Node("MatMul", ["a", "z"], ["out"])]
    assert found(graph(nodes, "y out")) == [("x", "a", 1), ("a", "y", 1)]


def test_a_graph_output_inside_ends_a_region() -> None:
    nodes = [Node("Relu", ["x"], ["a"]), Node("Tanh", ["a"], ["y"])]
    assert found(graph(nodes, "a y")) == [("x", "a", 1), ("a", "y", 1)]


def test_two_branches_are_two_regions() -> None:
    nodes = [
        Node("Relu", ["x"], ["a"]),
        Node("Sigmoid", ["x"], ["b"]),
        Node("Tanh", ["a"], ["c"]),
        Node("Exp", ["b"], ["d"]),
    ]
    assert sorted(found(graph(nodes, "c d"))) == [("x", "c", 2), ("x", "d", 2)]


@pytest.mark.parametrize(
    "constant", [np.ones((3,), np.float32), np.ones((1, 1, 1), np.float32), np.array(1, np.int64), np.array(1.0)]
)
def test_only_float32_scalars_are_constants_of_a_region(constant: np.ndarray) -> None:
    assert found(graph([Node("Mul", ["x", "k"], ["y"])], "y", {"k": constant})) == []


def test_other_operators_and_domains_are_no_regions() -> None:
    nodes = [Node("Softmax", ["x"], ["a"]), Node("Relu", ["a"], ["y"], domain="com.example")]
    assert found(graph(nodes, "y")) == []


def test_evaluation_is_the_float32_chain_bit_for_bit() -> None:
    [region] = unary_regions(graph([*hard_swish("x", "h"), Node("Mul", ["h", "one"], ["y"])], "y"))
    x = np.random.default_rng(0).normal(0, 4, 100_000).astype(np.float32)
    three, zero, six, one = SCALARS.values()
    expected = x * np.minimum(np.maximum(x + three, zero), six) / six * one
    np.testing.assert_array_equal(region.evaluate(x, SCALARS), expected)


def test_evaluation_rounds_transcendental_functions_once() -> None:
    x = np.linspace(-9, 9, 10_001, dtype=np.float32)
    region = Region("x", "y", (Node("Sigmoid", ["x"], ["y"]),))
    expected = (1 / (1 + np.exp(-x.astype(np.float64)))).astype(np.float32)
    np.testing.assert_array_equal(region.evaluate(x, {}), expected)


def test_attributes_and_optional_inputs_count() -> None:
    nodes = (Node("Clip", ["x", "", "six"], ["a"]), Node("LeakyRelu", ["a"], ["y"], {"alpha": 0.5}))
    np.testing.assert_array_equal(Region("x", "y", nodes).evaluate(np.float32([-4, 9]), SCALARS), [-2, 6])
