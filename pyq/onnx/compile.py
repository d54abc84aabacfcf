"""Graph -> steps: int8 patterns first, everything else in float."""

from __future__ import annotations

import numpy as np

from pyq.onnx import qdq
from pyq.onnx.float_ops import FloatStep, RegionStep
from pyq.onnx.integer_steps import int8_step
from pyq.onnx.step import Step
from pyq.quantization.graph import Graph
from pyq.quantization.regions import unary_regions


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
