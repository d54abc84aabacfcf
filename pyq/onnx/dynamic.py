"""Dynamically quantized layers, as ONNX Runtime's quantizer writes them: several nodes become one.

    q, s, z = DynamicQuantizeLinear(x)
    y = Mul(Cast(MatMulInteger(q, w, z, w_zero_point)), Mul(s, w_scale)), perhaps Add(y, bias)

The node "DynamicMatMul" computes the same numbers in one call (`pyq.matmul_dynamic`). Layers that read the same x each
quantize it for themselves, which takes less than the passes over the result that this saves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from pyq.onnx.integer_steps import Array, weight_tensor
from pyq.onnx.steps import DOMAIN
from pyq.quantization.graph import Graph, Node

Reader = Callable[[str, str], Node | None]


def merge_dynamic(graph: Graph) -> None:
    """Merge, in place, the nodes of each such layer with constant weights, if nothing else reads what is between."""
    consumers = graph.consumers()
    visible = set(graph.output_names).union(*(node.captures for node in graph.nodes))
    makers = {name: node for node in graph.nodes for name in node.outputs}

    def reader(value: str, op_type: str) -> Node | None:
        """The only node that reads the value, if it is such a one."""
        nodes = [] if value in visible else consumers[value]
        return nodes[0] if len(nodes) == 1 and is_node(nodes[0], op_type) else None

    merged: dict[Node, Node] = {}
    swallowed: set[Node] = set()
    for node in graph.nodes:
        nodes = layer(node, makers, reader)
        made = layer_node(nodes, makers, graph.constants) if nodes else None
        if made is not None:
            last = next(each for each in nodes if each.outputs == made.outputs)
            merged[last] = made
            swallowed.update(nodes[: nodes.index(last)])
    graph.nodes = [merged.get(node, node) for node in graph.nodes if node not in swallowed]


def is_node(node: Node | None, op_type: str) -> bool:
    """Whether it is a node of this ONNX operator."""
    return node is not None and not node.domain and node.op_type == op_type


def other(node: Node, name: str) -> str:
    """The input of a node with two that is not `name`; `name` when both are."""
    return node.inputs[1 - node.inputs.index(name)]


def layer(product: Node, makers: Mapping[str, Node], reader: Reader) -> list[Node]:
    """The nodes of a layer: MatMulInteger, Cast, Mul and perhaps Add; none where that is something else."""
    if not is_node(product, "MatMulInteger"):
        return []
    source = makers.get(product.inputs[0])
    if source is None or not is_node(source, "DynamicQuantizeLinear"):
        return []
    cast = reader(product.outputs[0], "Cast")
    scaled = reader(cast.outputs[0], "Mul") if cast is not None else None
    if cast is None or scaled is None or cast.attributes["to"] != TensorProto.FLOAT:
        return []
    factor = makers.get(other(scaled, cast.outputs[0]))
    if factor is None or not is_node(factor, "Mul") or source.outputs[1] not in factor.inputs:
        return []
    if [product.inputs[0], *product.inputs[2:3]] != [source.outputs[0], source.outputs[2]]:
        return []
    add = reader(scaled.outputs[0], "Add")
    return [product, cast, scaled] if add is None else [product, cast, scaled, add]


def layer_node(nodes: list[Node], makers: Mapping[str, Node], constants: Mapping[str, Array]) -> Node | None:
    """The node that a layer becomes, without the Add if that adds no constant; None where weights are not constant."""
    product, cast, scaled, *adds = nodes
    source, factor = makers[product.inputs[0]], makers[other(scaled, cast.outputs[0])]
    scale = constants.get(other(factor, source.outputs[1]))
    zero_point = constants.get(product.inputs[3]) if any(product.inputs[3:]) else 0
    bias = constants.get(other(adds[0], scaled.outputs[0])) if adds else None
    made = dynamic_node(product, source.inputs[0], constants.get(product.inputs[1]), scale, zero_point, bias)
    if made is None:
        return None
    made.outputs = (scaled if made.attributes["bias"] is None else adds[0]).outputs
    return made


def dynamic_node(
    node: Node, x: str, w: Array | None, scale: Array | None, zero_point: Array | int | None, bias: Array | None
) -> Node | None:
    """A DynamicMatMul of weights [K, N], with the name and the outputs of `node`.

    Scales and zero points, one or one per column; None where one is missing. A bias is left out unless it is a float32
    per column.
    """
    if w is None or w.ndim != 2 or scale is None or zero_point is None:
        return None
    zeros = np.asarray(zero_point, w.dtype) if isinstance(zero_point, int) else zero_point
    columns = w.shape[1]
    if scale.ndim > 1 or {scale.size, zeros.size} - {1, columns}:
        return None
    try:
        weight = weight_tensor(w, scale, zeros, 1)
    except ValueError:  # a scale that is no such number: ONNX computes with it all the same
        return None
    if weight is None:
        return None
    if bias is not None and (bias.shape != (columns,) or bias.dtype != np.float32):
        bias = None
    return Node("DynamicMatMul", [x], node.outputs, {"weight": weight, "bias": bias}, node.name, DOMAIN)
