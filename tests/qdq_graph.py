"""QDQ graphs built node by node, and the check that fusing one changes its operators but not its results.

All scales are powers of two and all products are short, so that the unfused graph, which works in float32, has no
rounding that the int8 kernels do not have.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

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
        return Graph(self.nodes, self.constants, [ValueInfo("x")], [ValueInfo(name) for name in outputs], opset=21)


def plan(graph: Graph) -> Plan:
    """The graph as it stands, ready to run."""
    steps = [int8_step(node, graph) or FloatStep(node, graph) for node in graph.sorted()]
    return Plan(steps, graph.output_names)


def run(graph: Graph, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of the graph as it stands."""
    return list(plan(graph).run(feeds).values())


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


def hardswish(b: Builder, x: str) -> str:
    gate = b.op("Clip", b.op("Add", x, b.constant(3)), b.constant(0), b.constant(6))
    return b.op("Div", b.op("Mul", x, gate), b.constant(6))
