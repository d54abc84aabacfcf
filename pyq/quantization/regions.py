"""Unary regions: parts of a graph that are, as a whole, one function of one number.

Exporters write activations as several operators: hard swish as `Add 3, Clip 0 6, Mul x, Div 6`, swish as
`x * Sigmoid(x)`. In int8 such a region is one 256-entry table, so quantization puts QuantizeLinear /
DequantizeLinear around it and not inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pyq.quantization.float_elementwise import ELEMENTWISE
from pyq.quantization.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class Region:
    """Element-wise nodes, in order, between the value `input` and the value `output`.

    Nothing outside reads a value made inside, except `output`; all other inputs are scalar constants.
    """

    input: str
    output: str
    nodes: tuple[Node, ...]

    def evaluate(self, x: np.ndarray, constants: Mapping[str, np.ndarray]) -> np.ndarray:
        """The region's output for float32 x: every operator is rounded once to float32, as if computed exactly.

        Operators run in float64 and are then rounded; for +, -, *, / and the square root this is the float32
        operation bit for bit (Figueroa, "When is double rounding innocuous?", 1995).

        >>> relu = Region("x", "y", (Node("Relu", ["x"], ["y"]),))
        >>> relu.evaluate(np.float32([-1, 2]), {})
        array([0., 2.], dtype=float32)
        """
        values: dict[str, np.ndarray] = {self.input: np.asarray(x, np.float32)}
        with np.errstate(all="ignore"):
            for node in self.nodes:
                arrays = [
                    (values[name] if name in values else constants[name]).astype(np.float64) if name else None
                    for name in node.inputs
                ]
                y = ELEMENTWISE[node.op_type](*arrays, **node.attributes)
                values[node.outputs[0]] = np.asarray(y).astype(np.float32)
        return values[self.output]


def unary_regions(graph: Graph) -> list[Region]:
    """The maximal unary regions of a graph: disjoint, each at least one node, in graph order.

    >>> from pyq.quantization.graph import ValueInfo
    >>> nodes = [Node("Sigmoid", ["x"], ["s"]), Node("Mul", ["x", "s"], ["y"])]
    >>> [region] = unary_regions(Graph(nodes, {}, [ValueInfo("x")], [ValueInfo("y")], opset=13))
    >>> region.input, region.output, len(region.nodes)
    ('x', 'y', 2)
    """
    order = {node: index for index, node in enumerate(graph.sorted())}
    finder = _Finder(graph, order)
    found: list[Region] = []
    taken: set[Node] = set()
    for node in reversed(list(order)):
        if node not in taken:
            region = finder.ending_at(node, taken)
            if region is not None:
                taken.update(region.nodes)
                found.append(region)
    return found[::-1]


class _Finder:
    """Grows regions backwards from their last node."""

    def __init__(self, graph: Graph, order: dict[Node, int]) -> None:
        self.constants = graph.constants
        self.producers = graph.producers()
        self.made_at = {name: order[node] for name, node in self.producers.items()}
        self.consumers = graph.consumers()
        self.outputs = set(graph.output_names)
        self.order = order

    def ending_at(self, last: Node, taken: set[Node]) -> Region | None:
        """The largest region whose last node is `last`, or None."""
        if not self._is_elementwise(last):
            return None
        inside = {last}
        open_values = set(self._variables(last))  # read inside, made outside
        closed: set[str] = set()  # open values that can only be the region's input
        best: Region | None = None
        while open_values:
            if len(open_values) == 1:
                nodes = tuple(sorted(inside, key=self.order.__getitem__))
                best = Region(next(iter(open_values)), last.outputs[0], nodes)
            candidates = open_values - closed
            if not candidates:
                break
            # The latest value first: its readers come after it, so all that can be inside are inside already.
            value = max(candidates, key=lambda name: self.made_at.get(name, -1))
            maker = self.producers.get(value)
            internal = value not in self.outputs and all(reader in inside for reader in self.consumers[value])
            if maker is None or maker in taken or not internal or not self._is_elementwise(maker):
                closed.add(value)
                continue
            inside.add(maker)
            open_values.remove(value)
            open_values.update(self._variables(maker))
        return best

    def _variables(self, node: Node) -> list[str]:
        return [name for name in node.reads() if name not in self.constants]

    def _is_elementwise(self, node: Node) -> bool:
        """Whether the node works element by element and all its constants are float scalars."""
        constants = [self.constants[name] for name in node.inputs if name in self.constants]
        return (
            not node.domain
            and node.op_type in ELEMENTWISE
            and all(array.size == 1 and array.ndim <= 1 and array.dtype == np.float32 for array in constants)
        )
