"""Graph -> steps: int8 patterns first, everything else in float."""

from __future__ import annotations

from typing import Any

import numpy as np

from pyq.onnx import qdq
from pyq.onnx.float_ops import FloatStep
from pyq.onnx.integer_steps import int8_step
from pyq.onnx.step import Buffers, Step
from pyq.onnx.steps import take_like
from pyq.quantization.graph import Graph
from pyq.quantization.regions import Region, unary_regions

BLOCK = 32768
"""Elements that a region takes at a time: a few such arrays of float32 stay in the second-level cache."""


def compile_steps(graph: Graph) -> tuple[list[Step], dict[str, np.ndarray]]:
    """The steps that compute the graph's outputs, in order, and the constants that steps or outputs refer to.

    Values inside fused patterns are not made; a value that has to be visible must be an output of the graph.

    Raises UnsupportedOperator for a node that nothing can run.
    """
    graph = qdq.fuse(graph)
    regions = {region.nodes[-1]: region for region in unary_regions(graph) if len(region.nodes) > 1}
    inside = {node for region in regions.values() for node in region.nodes[:-1]}
    steps: list[Step] = []
    for node in graph.nodes:
        if node in regions:
            steps.append(RegionStep(regions[node], graph))
        elif node not in inside:
            steps.append(int8_step(node, graph) or FloatStep(node, graph))
    return steps, graph.constants


class RegionStep:
    """A unary region, block by block, so that what its operators pass to each other stays in the cache."""

    def __init__(self, region: Region, graph: Graph) -> None:
        self.name = region.nodes[-1].name
        self.op_type = "+".join(node.op_type for node in region.nodes)
        self.inputs, self.outputs = [region.input], [region.output]
        self._steps = [FloatStep(node, graph) for node in region.nodes]

    def run(self, inputs: list[Any], out: Buffers) -> list[Any]:
        """Compute the output; see `pyq.onnx.step.Step`."""
        [x] = inputs
        if x.size <= BLOCK or x.dtype != np.float32:
            return [self._block(x, out)]
        y = take_like(x, x.shape, x.dtype, out)
        source, target = x.ravel(order="K"), y.ravel(order="K")
        if x.strides != y.strides:  # x has gaps, so that flat it is in another order than y
            return [self._block(x, out)]
        for start in range(0, x.size, BLOCK):
            block = slice(start, start + BLOCK)
            target[block] = self._block(source[block], out)
        return [y]

    def _block(self, x: np.ndarray, out: Buffers) -> np.ndarray:
        values = {self.inputs[0]: x}
        for step in self._steps:
            [values[step.outputs[0]]] = step.run([values[name] for name in step.inputs], out)
        return values[self.outputs[0]]
