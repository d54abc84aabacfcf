"""A small view of a computation graph: what passes, quantization and verification work on.

It knows nothing about where a model came from. Operators, attributes and their meaning are those of ONNX;
`pyq.onnx` turns a model file into a `Graph` and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ValueInfo:
    """Name, element type and shape of a graph input or output.

    A dimension is an int when fixed, a str when symbolic, None when nothing is known about it; `shape` is
    None when even the rank is unknown, and `dtype` is None for values that are not tensors.
    """

    name: str
    dtype: np.dtype[Any] | None = None
    shape: tuple[int | str | None, ...] | None = None


@dataclass(eq=False)
class Node:
    """One operator call. Nodes compare by identity, so they can be kept in sets.

    inputs: value names in the operator's order, "" for an optional input that is absent.
    outputs: value names, "" for an optional output that nobody wants.
    attributes: int, float, str, lists of those, np.ndarray for tensors; a subgraph stays an opaque object.
    captures: values of this graph which the node's subgraphs read (`If`, `Loop`, `Scan`).
    """

    op_type: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    domain: str = ""
    captures: list[str] = field(default_factory=list)

    def reads(self) -> list[str]:
        """The distinct values this node needs, absent inputs left out."""
        return list(dict.fromkeys(name for name in [*self.inputs, *self.captures] if name))

    def copy(self) -> Node:
        """A node of its own; attribute values are shared, they are never modified in place."""
        return replace(
            self,
            inputs=list(self.inputs),
            outputs=list(self.outputs),
            attributes=dict(self.attributes),
            captures=list(self.captures),
        )


@dataclass
class Graph:
    """Nodes, constants and the values that go in and out.

    opset: version of the ONNX operator set the nodes are written in.
    domains: versions of the other operator domains in use, by domain name.
    metadata: the model's free-form properties (an OCR model keeps its alphabet there).

    >>> graph = Graph([Node("Relu", ["x"], ["y"])], {}, [ValueInfo("x")], [ValueInfo("y")], opset=13)
    >>> graph.consumers()["x"][0].op_type
    'Relu'
    """

    nodes: list[Node]
    constants: dict[str, np.ndarray]
    inputs: list[ValueInfo]
    outputs: list[ValueInfo]
    opset: int
    name: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)

    @property
    def output_names(self) -> list[str]:
        """Names of the graph's outputs, in order."""
        return [value.name for value in self.outputs]

    def producers(self) -> dict[str, Node]:
        """The node that makes each value; graph inputs and constants have none."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, once per node, in graph order.

        Every value of the graph has an entry. A graph output counts as no consumer: ask `output_names`.
        """
        table: dict[str, list[Node]] = {value.name: [] for value in self.inputs}
        table.update({name: [] for name in self.constants})
        table.update({name: [] for node in self.nodes for name in node.outputs if name})
        for node in self.nodes:
            for name in node.reads():
                table.setdefault(name, []).append(node)
        return table

    def copy(self) -> Graph:
        """A graph whose nodes and tables may be changed freely; arrays are shared, they are never modified."""
        return replace(
            self,
            nodes=[node.copy() for node in self.nodes],
            constants=dict(self.constants),
            inputs=list(self.inputs),
            outputs=list(self.outputs),
            metadata=dict(self.metadata),
            domains=dict(self.domains),
        )

    def prune(self) -> None:
        """Drop, in place, the nodes and constants from which no output can be reached."""
        needed = set(self.output_names)
        kept: list[Node] = []
        for node in reversed(self.sorted()):
            if needed.intersection(node.outputs):
                needed.update(node.reads())
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {name: array for name, array in self.constants.items() if name in needed}

    def sorted(self) -> list[Node]:
        """The nodes in an order in which every value is made before it is read; stable.

        Raises ValueError when a value is read that nothing makes, or when the graph has a cycle.
        """
        known = {value.name for value in self.inputs} | set(self.constants)
        made = self.producers()
        readers: dict[str, list[int]] = {}
        missing: list[int] = []
        for index, node in enumerate(self.nodes):
            unmade = [name for name in node.reads() if name not in known]
            for name in unmade:
                if name not in made:
                    raise ValueError(f"node {node.name!r} ({node.op_type}) reads {name!r}, which nothing produces")
                readers.setdefault(name, []).append(index)
            missing.append(len(unmade))
        ready = [index for index, count in enumerate(missing) if count == 0]  # a heap: earliest node first
        order: list[Node] = []
        while ready:
            node = self.nodes[heappop(ready)]
            order.append(node)
            for index in (index for name in node.outputs for index in readers.get(name, ())):
                missing[index] -= 1
                if missing[index] == 0:
                    heappush(ready, index)
        if len(order) < len(self.nodes):
            stuck = next(node for node, count in zip(self.nodes, missing, strict=True) if count)
            raise ValueError(f"the graph has a cycle through node {stuck.name!r} ({stuck.op_type})")
        return order
