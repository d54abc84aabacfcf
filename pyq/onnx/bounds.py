"""How large the int8 activations of a graph can be: a smaller bound lets the packing prove more (docs/numerics.md).

A table, a fused Relu6 or Clip, or a calibrated range that does not fill its type bounds the output of an int8 node,
whatever its input is; pools, data movement and Concat keep bounds. What a QuantizeLinear of a float graph input gives
fills its type.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyq.quantization.graph import Graph, Node

Bounds = tuple[int, int]


def proven_amax(low: int, high: int, dtype: np.dtype[Any]) -> int:
    """The smallest `amax` of `pyq.pack` that allows activations of `dtype` in [low, high].

    >>> proven_amax(0, 100, np.dtype(np.uint8)), proven_amax(-64, 63, np.dtype(np.int8))
    (100, 127)
    """
    if dtype == np.uint8:
        return max(high, 1)
    return max(1, -2 * low - 1, 2 * high)  # int8 is shifted by (amax + 1) // 2


def bound_products(graph: Graph, domain: str, data_movement: frozenset[str]) -> None:
    """Set the attribute `amax` of every product in `graph`, in place. Nodes are in order, int8 ones in `domain`."""
    known: dict[str, Bounds] = {}
    for node in graph.nodes:
        if node.domain == domain and {"x", "weight"} <= node.attributes.keys():  # not of a dynamic product
            node.attributes["amax"] = _amax(node, known)
        bounds = _output_bounds(node, known, domain, data_movement)
        if bounds is not None:
            known.update(dict.fromkeys(node.outputs, bounds))


def _amax(node: Node, known: dict[str, Bounds]) -> int:
    params = node.attributes["x"]
    low, high = known.get(node.inputs[0], (params.qmin, params.qmax))
    zero_point = int(params.zero_point)  # padding
    return proven_amax(min(low, zero_point), max(high, zero_point), params.dtype)


def _output_bounds(node: Node, known: dict[str, Bounds], domain: str, data_movement: frozenset[str]) -> Bounds | None:
    attributes = node.attributes
    if node.op_type == "MaxPool" or (node.domain == "" and node.op_type in data_movement):
        return known.get(node.inputs[0])
    if node.op_type == "Concat":
        tables = attributes.get("tables", [None] * len(node.inputs))
        parts = [_of(known.get(name), table, attributes) for name, table in zip(node.inputs, tables, strict=True)]
        found = [part for part in parts if part is not None]
        return (min(p[0] for p in found), max(p[1] for p in found)) if len(found) == len(parts) else None
    if node.domain != domain:
        return None
    out = attributes.get("sum") or attributes.get("out")  # of a product with a residual, or by itself
    return _of(None if out is None else (out.qmin, out.qmax), attributes.get("table"), attributes)


def _of(bounds: Bounds | None, table: np.ndarray | None, attributes: dict[str, Any]) -> Bounds | None:
    """What is left of `bounds` behind a table, which alone bounds them too."""
    if table is None:
        return bounds
    values = table.view(attributes["dtype"])
    return int(values.min()), int(values.max())
