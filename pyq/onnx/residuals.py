"""The Add of a residual block becomes part of the product before it, which adds while it stores."""

from __future__ import annotations

from pyq.onnx.steps import DOMAIN
from pyq.qparams import QParams
from pyq.quantization.graph import Graph, Node

PRODUCTS = ("Conv", "Gemm", "MatMul")


def merge_residuals(graph: Graph) -> None:
    """Merge each int8 Add, in place, into the Conv, Gemm or MatMul that makes one of its operands for it alone.

    Of two such products the later one takes the Add: by then the other operand is there. Relu and Clip behind the Add
    are in the bounds of its output already.
    """
    consumers, outputs = graph.consumers(), set(graph.output_names)
    products: dict[str, tuple[int, Node]] = {}
    merged: set[Node] = set()
    for index, node in enumerate(graph.nodes):
        if node.domain != DOMAIN:
            continue
        if node.op_type in PRODUCTS and node.attributes["out"] is not None:
            name = node.outputs[0]
            if len(consumers[name]) == 1 and name not in outputs:
                products[name] = index, node
        elif node.op_type == "Add":
            operands = [operand for operand in _operands(node) if _fits(products.get(operand[0]), operand)]
            if operands:
                name, _, other, params = max(operands, key=lambda operand: products[operand[0]][0])
                product = products[name][1]
                graph.nodes[index] = _merge(product, node, other, params)
                merged.add(product)
    graph.nodes = [node for node in graph.nodes if node not in merged]


_Operand = tuple[str, QParams, str, QParams]
"""An operand of an Add and its parameters, and the other operand and its own."""


def _operands(add: Node) -> list[_Operand]:
    (a, b), qa, qb = add.inputs, add.attributes["a"], add.attributes["b"]
    return [] if a == b else [(a, qa, b, qb), (b, qb, a, qa)]


def _fits(product: tuple[int, Node] | None, operand: _Operand) -> bool:
    """Whether the operand is that product, and is read as what it was quantized to."""
    if product is None:
        return False
    out, params = product[1].attributes["out"], operand[1]
    return bool((out.scale, out.zero_point, out.dtype) == (params.scale, params.zero_point, params.dtype))


def _merge(product: Node, add: Node, residual: str, params: QParams) -> Node:
    total = add.attributes["out"]
    attributes = {**product.attributes, "residual": params, "sum": total, "dtype": total.dtype}
    return Node(product.op_type, [*product.inputs, residual], add.outputs, attributes, product.name, DOMAIN)
