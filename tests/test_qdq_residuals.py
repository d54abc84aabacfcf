"""Which Adds of a QDQ graph become part of the product before them, and that no result changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from models import feeds, residual
from qdq_graph import IMAGE, Builder, check, hardswish, operators, plan
from test_static import quantized

from pyq.onnx import Session, qdq
from pyq.onnx.export import to_proto
from pyq.onnx.qdq import fuse
from pyq.onnx.step import Fresh
from pyq.onnx.steps import ConvStep
from pyq.quantization.graph import Graph

SUM = 2**-1, 131, "uint8"


def product(b: Builder, x: str, *shape: int, scale: float = 2**-1, dtype: str = "uint8", **attributes: int) -> str:
    """A Conv of x, or with weights [K, N] a MatMul, and a Relu, through a QuantizeLinear and a DequantizeLinear."""
    if len(shape) == 2:
        y = b.op("MatMul", x, b.weight(*shape, axis=1))
    else:
        y = b.op("Conv", x, b.weight(*shape), pads=[shape[2] // 2] * 4, **attributes)
    return b.pair(b.op("Relu", y), scale, 25 if dtype == "uint8" else -59, dtype)


def block(add: Callable[[Builder, str, str], str], dtypes: tuple[str, str] = ("uint8", "uint8")) -> Graph:
    """x and a Conv of x, of 8 channels each, and what `add` makes of the two."""
    b = Builder()
    x = b.pair("x", 2**-5, 3, dtypes[0])
    return b.graph(b.quantize(add(b, x, product(b, x, 8, 8, 3, 3, dtype=dtypes[1])), *SUM))


FUSED = {"QuantizeLinear": 1, "int8.Conv": 1}
APART = {"QuantizeLinear": 1, "int8.Conv": 1, "int8.Add": 1}


@pytest.mark.parametrize("dtypes", [("uint8", "int8"), ("int8", "uint8"), ("int8", "int8")])
@pytest.mark.parametrize("first", [True, False])
def test_either_operand_may_be_the_product(first: bool, dtypes: tuple[str, str]) -> None:
    fused = check(block(lambda b, x, y: b.op("Add", *((x, y) if first else (y, x))), dtypes), FUSED)
    node = fused.nodes[-1]
    assert node.inputs == [fused.nodes[0].outputs[0]] * 2
    assert node.attributes["residual"].dtype == dtypes[0] and node.attributes["out"].dtype == dtypes[1]


@pytest.mark.parametrize(
    "activation",
    [
        lambda b, y: b.op("Relu", y),
        lambda b, y: b.op("Clip", y, b.constant(-20), b.constant(33)),
        lambda b, y: hardswish(b, b.pair(y, *SUM)),
        lambda b, y: b.op("Sigmoid", b.op("Relu", b.pair(y, 2**-3, 60))),
    ],
)
def test_activations_behind_the_sum(activation: Callable[[Builder, str], str]) -> None:
    b = Builder()
    x = b.pair("x")
    y = activation(b, b.op("Add", x, product(b, x, 8, 1, 3, 3, group=8)))
    check(b.graph(b.quantize(y, 2**-8 if b.nodes[-1].op_type == "Sigmoid" else 2**-1, 7)), FUSED)


def test_of_two_products_the_later_one_adds() -> None:
    b = Builder()
    x = b.pair("x")
    y, z = product(b, x, 6, 8, 1, 1), product(b, x, 6, 8, 3, 3)
    fused = check(b.graph(b.quantize(b.op("Add", z, y), *SUM)), {"QuantizeLinear": 1, "int8.Conv": 2})
    assert [node.attributes["residual"] is None for node in fused.nodes[1:]] == [True, False]


def test_a_product_adds_one_residual() -> None:
    b = Builder()
    x = b.pair("x")
    y = b.pair(b.op("Add", product(b, x, 8, 8, 3, 3), x), *SUM)
    check(b.graph(b.quantize(b.op("Add", y, x), *SUM)), APART)


@pytest.mark.parametrize("rank", [2, 3])
def test_matrix_products(rank: int) -> None:
    b = Builder()
    x = b.pair("x")
    y = b.quantize(b.op("Add", x, product(b, x, 24, 24)), *SUM)
    check(b.graph(y), {"QuantizeLinear": 1, "int8.MatMul": 1}, shape=(5, 7, 24)[-rank:])


def test_gemm() -> None:
    b = Builder()
    x = b.pair("x")
    y = b.pair(b.op("Gemm", x, b.weight(24, 24), b.constant(np.arange(24)), transB=1), 2**-1, 125)
    check(b.graph(b.quantize(b.op("Add", y, x), *SUM)), {"QuantizeLinear": 1, "int8.Gemm": 1}, shape=(9, 24))


def test_a_product_that_others_read_stays_apart() -> None:
    def add(b: Builder, x: str, y: str) -> str:
        return b.op("Mul", b.pair(b.op("Add", x, y), *SUM), y)

    check(block(add), {**APART, "int8.Mul": 1})


def test_a_product_that_is_an_output_stays_apart() -> None:
    b = Builder()
    x = b.pair("x")
    y = product(b, x, 8, 8, 3, 3)
    quantized = b.nodes[-1].inputs[0]
    check(b.graph(b.quantize(b.op("Add", x, y), *SUM), quantized), APART)


def test_a_product_added_to_itself_stays_apart() -> None:
    """In QDQ form that is a table; this form has the Add."""
    b = Builder()
    y = b.quantize(b.op("Conv", b.pair("x"), b.weight(8, 8, 3, 3)), 2**-1, 125)
    operand = [y, *b.params(2**-1, 125, "uint8")]
    b.op("QLinearAdd", *operand, *operand, *b.params(1.0, 131, "uint8"))
    b.nodes[-1].domain = "com.microsoft"
    assert operators(fuse(b.graph(b.nodes[-1].outputs[0]))) == APART


def test_a_table_before_the_sum_stays_before_it() -> None:
    check(block(lambda b, x, y: b.op("Add", x, b.pair(hardswish(b, y), 2**-1, 20))), APART)


def test_a_product_read_by_other_parameters_stays_apart() -> None:
    """A DequantizeLinear need not have the parameters of the QuantizeLinear before it."""

    def add(b: Builder, x: str, y: str) -> str:
        return b.op("Add", x, b.dequantize(b.nodes[-1].inputs[0], 2**-2, 120))

    check(block(add), APART)


@pytest.mark.parametrize(
    ("weight", "residual"),
    [((8, 8, 3, 3), (8, 1, 1)), ((8, 8, 3, 3), (2, 1, 9, 11)), ((1, 8, 3, 3), (8, 1, 1)), ((24, 24), (24,))],
)
def test_shapes_that_broadcast(weight: tuple[int, ...], residual: tuple[int, ...]) -> None:
    """The second of them makes the product itself larger; a table behind the sum still follows."""
    b = Builder()
    constant = b.constant(b.rng.integers(0, 256, residual), np.uint8)
    y = b.op("Add", product(b, b.pair("x"), *weight), b.dequantize(constant, 2**-1, 119))
    graph = b.graph(b.quantize(hardswish(b, b.pair(y, *SUM)), *SUM))
    matrix = len(weight) == 2
    check(graph, {"QuantizeLinear": 1, f"int8.{'MatMul' if matrix else 'Conv'}": 1}, (7, 24) if matrix else IMAGE)


def test_the_type_of_a_residual_is_checked() -> None:
    fused = fuse(block(lambda b, x, y: b.op("Add", x, y)))
    step = ConvStep(fused.nodes[-1], fused.constants)
    x = np.zeros(IMAGE, np.uint8)
    with pytest.raises(TypeError, match="input 1 is int8, expected uint8"):
        step.run([x, x.astype(np.int8)], Fresh())


def test_residuals_live_until_they_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks in a row, run again and again in one arena, against the model without this pass."""
    b = Builder()
    y = b.pair("x")
    for _ in range(4):
        inner = product(b, product(b, y, 16, 8, 1, 1, scale=4.0), 8, 16, 3, 3, scale=16.0)
        y = b.pair(b.op("Relu", b.op("Add", inner, y)), 4.0, 3)
    graph = b.graph(y)
    fused = fuse(graph)
    monkeypatch.setattr(qdq, "merge_residuals", lambda graph: None)
    apart = fuse(graph)
    assert operators(fused)["int8.Conv"] == operators(apart)["int8.Conv"] == 8
    assert operators(fused)["int8.Add"] == 0 and operators(apart)["int8.Add"] == 4
    plans = [plan(g) for g in (fused, apart)]
    for seed in range(3):
        x = np.random.default_rng(seed).normal(0, 0.9, IMAGE).astype(np.float32)
        results = [p.run({"x": x})[y] for p in plans]
        np.testing.assert_array_equal(*results)
        assert len(np.unique(results[0])) > 6


def test_a_session_shows_what_was_merged() -> None:
    """A value within is not made in a plain run, and made when it is asked for."""
    session = Session(to_proto(quantized(residual())[1]))
    assert "Add" not in [step.op_type for step in session.steps]
    (feed,) = feeds(residual(), 1)
    within = [node.outputs[0] for node in session.graph.nodes if node.op_type == "QuantizeLinear"]
    values = session.run_values([*within, *session.graph.output_names], feed)
    assert all(values[name].dtype == np.uint8 for name in within)
    np.testing.assert_array_equal(values[session.graph.output_names[0]], session.run(None, feed)[0])
