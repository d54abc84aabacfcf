"""Operators of ONNX Runtime's domain "com.microsoft" on integers, as int8 nodes.

Quantized models in the operator-oriented format have them. Their parameters must be constants, as quantizers make
them; https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md defines them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from pyq.onnx.dynamic import dynamic_node
from pyq.onnx.integer_steps import tensor_params, weight_tensor
from pyq.onnx.matching import Tail
from pyq.onnx.steps import product_attributes
from pyq.qparams import QParams
from pyq.quantization.graph import Node
from pyq.tables import unary_table

if TYPE_CHECKING:
    from pyq.onnx.qdq import Fuser


def params_at(fuser: Fuser, node: Node, place: int) -> QParams | None:
    """The constant parameters whose scale and zero point are inputs number `place` and `place + 1` of the node."""
    scale, zero_point = [*node.inputs, "", ""][place : place + 2]
    return tensor_params(fuser.constants.get(scale), fuser.constants.get(zero_point))


def renamed(node: Node, op_type: str) -> Node:
    """The node as another operator."""
    return replace(node, op_type=op_type)


def output(node: Node) -> Tail:
    """The operator swallows nothing behind itself."""
    return Tail(node.outputs[0], [])


def binary(fuser: Fuser, node: Node) -> bool:
    """QLinearAdd, QLinearMul: a, its scale and zero point, b, its scale and zero point, those of the output."""
    a, b, out = (params_at(fuser, node, place) for place in (1, 4, 6))
    if a is None or b is None or out is None:
        return False
    operation = renamed(node, node.op_type.removeprefix("QLinear"))
    inputs = [node.inputs[0], node.inputs[3]]
    return fuser.emit(operation, inputs, output(node), {"a": a, "b": b, "out": out})


def unary(fuser: Fuser, node: Node) -> bool:
    """QLinearSigmoid, QLinearLeakyRelu: x, its scale and zero point, those of the output."""
    x, out = params_at(fuser, node, 1), params_at(fuser, node, 3)
    if x is None or out is None:
        return False
    if node.op_type == "QLinearSigmoid":
        table = unary_table("sigmoid", x, out)
    else:
        table = unary_table("leaky_relu", x, out, alpha=node.attributes.get("alpha", 0.01))
    attributes = {"table": table.values, "dtype": out.dtype}
    return fuser.emit(renamed(node, "Lookup"), node.inputs[:1], output(node), attributes)


def pool(fuser: Fuser, node: Node) -> bool:
    """QLinearGlobalAveragePool, QLinearAveragePool: x, its scale and zero point, those of the output."""
    x, out = params_at(fuser, node, 1), params_at(fuser, node, 3)
    if x is None or out is None or node.attributes.get("channels_last", 0):
        return False
    operation = renamed(node, node.op_type.removeprefix("QLinear"))
    return fuser.emit(operation, node.inputs[:1], output(node), {"x": x, "out": out})


def concat(fuser: Fuser, node: Node) -> bool:
    """QLinearConcat: scale and zero point of the output, then each input with its own."""
    out, inputs = params_at(fuser, node, 0), node.inputs[2::3]
    parts = [params_at(fuser, node, place) for place in range(3, len(node.inputs), 3)]
    if out is None or None in parts:
        return False
    tables = [None if x == out else unary_table("identity", x, out).values for x in parts if x]
    return fuser.emit(renamed(node, "Concat"), inputs, output(node), {"tables": tables, "dtype": out.dtype})


def gemm(fuser: Fuser, node: Node) -> bool:
    """QGemm: a, b, each with scale and zero point, an int32 bias in units of the accumulator, those of the output.

    Without parameters of an output it is float32.
    """
    names = [*node.inputs, *[""] * (9 - len(node.inputs))]
    b, b_scale, b_zero_point, bias = (fuser.constants.get(name) for name in names[3:7])
    x, out = params_at(fuser, node, 1), params_at(fuser, node, 7)
    transposed = bool(node.attributes.get("transB", 0))
    weight = weight_tensor(b, b_scale, b_zero_point, 0 if transposed else 1)
    missing = (names[6] and bias is None) or (names[7] and out is None)
    if x is None or weight is None or weight.ndim != 2 or missing or node.attributes.get("transA", 0):
        return False
    weight = weight.T if transposed else weight
    if node.attributes.get("alpha", 1.0) != 1.0 or (bias is not None and bias.size not in (1, weight.shape[1])):
        return False
    attributes = product_attributes(x, weight, None if bias is None else bias.reshape(-1), out)
    return fuser.emit(renamed(node, "Gemm"), node.inputs[:1], output(node), attributes)


def dynamic_matmul(fuser: Fuser, node: Node) -> bool:
    """DynamicQuantizeMatMul: a in float32, b, its scale and zero point, bias."""
    names = [*node.inputs, *[""] * (5 - len(node.inputs))]
    b, scale, zero_point, bias = (fuser.constants.get(name) for name in names[1:])
    made = dynamic_node(node, names[0], b, scale, zero_point if names[3] else 0, bias)
    if made is None or (names[4] and made.attributes["bias"] is None):
        return False
    fuser.nodes.append(made)
    return True


CONTRIB: dict[str, Callable[[Fuser, Node], bool]] = {
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), binary),
    **dict.fromkeys(("QLinearSigmoid", "QLinearLeakyRelu"), unary),
    **dict.fromkeys(("QLinearGlobalAveragePool", "QLinearAveragePool"), pool),
    "QLinearConcat": concat,
    "QGemm": gemm,
    "DynamicQuantizeMatMul": dynamic_matmul,
}
"""What each operator becomes; see `ONNX` in `pyq.onnx.qdq`."""
