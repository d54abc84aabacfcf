"""The int8 parts of a QDQ graph: dequantize -> operator -> quantize becomes one int8 node.

A QDQ graph is a float graph in which QuantizeLinear / DequantizeLinear pairs say where int8 is wanted. `fuse`
walks it once, in order, with the first four of these rules:

1. an operator with an int8 kernel (Conv, MatMul, Add, AveragePool ...) whose inputs are dequantized takes the
   integers, and swallows its bias, a following Relu or Clip, and the QuantizeLinear;
2. data movement (Reshape, Transpose, Slice ...) commutes with a per-tensor DequantizeLinear: it moves
   integers, and the DequantizeLinear goes behind it;
3. an element-wise region of one variable between a DequantizeLinear and a QuantizeLinear is a 256-entry
   table, and a table that follows a Conv, a MatMul or another table becomes part of that;
4. a DequantizeLinear followed by a QuantizeLinear cancels, or is a table when their parameters differ;
5. an Add becomes part of the Conv or MatMul that makes one of its operands (`pyq.onnx.residuals`);
6. a dynamically quantized layer becomes one node (`pyq.onnx.dynamic`).

What no rule covers stays as it was, between the QuantizeLinear and DequantizeLinear nodes of the graph. The
int8 nodes live in the domain "pyq"; `pyq.onnx.steps` says which attributes they have beside those of ONNX.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.onnx.bounds import bound_products
from pyq.onnx.contrib import CONTRIB
from pyq.onnx.dynamic import merge_dynamic
from pyq.onnx.matching import Matcher, Quantized, Tail, accumulator_bias
from pyq.onnx.residuals import merge_residuals
from pyq.onnx.steps import DOMAIN, product_attributes
from pyq.qparams import QParams, dequantize_array, quantize_array
from pyq.quantization.graph import Graph, Node
from pyq.quantization.regions import Region, unary_regions
from pyq.tables import unary_table
from pyq.tensor import QTensor
from pyq.transposed import as_filters

# Operators whose output elements are elements of their first input, whatever those are.
DATA_MOVEMENT = frozenset({
    "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip

# int8 nodes whose output can go through a table before it is stored.
WITH_TABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Lookup")


def fuse(graph: Graph) -> Graph:
    """A graph of the same function with int8 patterns as nodes of the domain "pyq"; `graph` is not changed.

    Quantized values are uint8 / int8 tensors under the name the QuantizeLinear gave them. Values inside a
    fused pattern are no longer made: one that has to stay visible must be an output of the graph.

    >>> from pyq.quantization.graph import ValueInfo
    >>> nodes = [Node("DequantizeLinear", ["x", "s", "z"], ["f"]), Node("Relu", ["f"], ["r"]),
    ...          Node("QuantizeLinear", ["r", "s", "z"], ["y"])]
    >>> constants = {"s": np.array(0.5, np.float32), "z": np.array(7, np.uint8)}
    >>> graph = Graph(nodes, constants, [ValueInfo("x")], [ValueInfo("y")], opset=13)
    >>> [(node.domain, node.op_type) for node in fuse(graph).nodes]
    [('pyq', 'Lookup')]
    """
    fuser = Fuser(graph)
    for node in graph.sorted():
        fuser.visit(node)
    fused = replace(graph.copy(), nodes=fuser.nodes, constants=fuser.constants)
    merge_dynamic(fused)
    fused.prune()
    merge_residuals(fused)
    merge_tables(fused)
    dequantize_constants(fused, fuser)
    bound_products(fused, DOMAIN, DATA_MOVEMENT)
    return fused


def merge_tables(graph: Graph) -> None:
    """Merge each Lookup, in place, into the one of `WITH_TABLE` that it alone reads."""
    consumers, outputs = graph.consumers(), set(graph.output_names)
    kept: list[Node] = []
    makers: dict[str, Node] = {}
    for node in graph.nodes:
        before = makers.get(node.inputs[0]) if node.domain == DOMAIN and node.op_type == "Lookup" else None
        if before and before.outputs[0] not in outputs and len(consumers[node.inputs[0]]) == 1:
            earlier, table = before.attributes["table"], node.attributes["table"]
            before.attributes["table"] = table if earlier is None else table[earlier]
            before.attributes["dtype"] = node.attributes["dtype"]
            before.outputs = list(node.outputs)
        else:
            before = node
            kept.append(node)
        if before.domain == DOMAIN and before.op_type in WITH_TABLE:
            makers[before.outputs[0]] = before
    graph.nodes = kept


def dequantize_constants(graph: Graph, fuser: Fuser) -> None:
    """Dequantize, in place, the constants that float operators still read, once and not in each run."""
    for node in list(graph.nodes):
        weight = fuser.weight(node.outputs[0]) if node.op_type == "DequantizeLinear" else None
        if weight is not None:
            graph.constants[node.outputs[0]] = weight.dequantize()
            graph.nodes.remove(node)


class Fuser(Matcher):
    """One walk over a graph: what it becomes is in `nodes` and `constants`."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.nodes: list[Node] = []
        self._known = set(graph.consumers())
        self._renamed: dict[str, str] = {}
        self._swallowed: set[Node] = set()
        self._regions = {node: region for region in unary_regions(graph) for node in region.nodes}

    def visit(self, node: Node) -> None:
        """Append what `node` becomes; nothing when an earlier node has swallowed it."""
        if node in self._swallowed:
            return
        region = self._regions.get(node)
        if region is not None and fuse_table(self, region, self.constants):
            return
        node = replace(node, inputs=[self._renamed.get(name, name) for name in node.inputs])
        pattern = PATTERNS.get(node.domain, {}).get(node.op_type)
        if pattern is None or not pattern(self, node):
            self.nodes.append(node)

    def emit(self, node: Node, inputs: list[str], tail: Tail, attributes: dict[str, Any]) -> bool:
        """Append the int8 form of `node`, which swallows `tail`. Returns True, a pattern's last word."""
        attributes = {**node.attributes, **attributes}
        self.nodes.append(Node(node.op_type, inputs, [tail.output], attributes, node.name, DOMAIN))
        self._swallowed.update(tail.nodes)
        return True

    def move(self, node: Node, inputs: list[str], params: QParams, domain: str = "") -> bool:
        """Append `node` on integers with one DequantizeLinear behind each output."""
        outputs = [self.fresh(name) if name else "" for name in node.outputs]
        self.nodes.append(replace(node, inputs=inputs, outputs=outputs, domain=domain))
        scale, zero_point = (self.fresh(f"{node.outputs[0]}_{name}") for name in ("scale", "zero_point"))
        self.constants[scale] = params.scale
        self.constants[zero_point] = params.zero_point.astype(params.dtype)
        for integers, real in zip(outputs, node.outputs, strict=True):
            if real:
                self.nodes.append(Node("DequantizeLinear", [integers, scale, zero_point], [real], name=real))
                self.dequantized[real] = Quantized(integers, params)
        return True

    def cancel(self, quantized: str, other: str) -> bool:
        """The integers `other` are those of `quantized`: let their readers read `quantized`."""
        # Pruned, unless `other` is an output of the graph.
        self.nodes.append(Node("Identity", [quantized], [other], name=other))
        self._renamed[other] = quantized
        return True

    def fresh(self, name: str) -> str:
        """A name for integers, of a value or a constant, that the graph does not have yet."""
        while name in self._known:
            name += "_int8"
        self._known.add(name)
        return name


def fuse_table(fuser: Fuser, region: Region, constants: Mapping[str, NDArray[Any]]) -> bool:
    """Dequantized input -> element-wise region -> QuantizeLinear is a 256-entry table."""
    x, tail = fuser.activation(region.input), fuser.tail(region.output)
    out = tail.out
    if x is None or out is None:
        return False
    try:
        table = unary_table(partial(region.evaluate, constants=constants), x.params, out).values
    except ValueError:  # not a number for some input: an error only if that input comes
        return False
    tail = replace(tail, nodes=[*region.nodes, *tail.nodes])
    main = Node("Lookup", [], [], name=region.nodes[-1].name)
    return fuser.emit(main, [x.name], tail, {"table": table, "dtype": out.dtype})


def dequantize_linear(fuser: Fuser, node: Node) -> bool:
    """Remember what the output stands for; the node itself is pruned when nothing reads the reals."""
    fuser.see(node)
    return False


def quantize_linear(fuser: Fuser, node: Node) -> bool:
    """A QuantizeLinear of dequantized integers: the same integers, or a table of them."""
    x, params = fuser.activation(node.inputs[0]), fuser.params(node)
    if x is None or params is None or params.axis is not None or params.dtype == np.int32:
        return False
    if params == x.params:
        return fuser.cancel(x.name, node.outputs[0])
    attributes = {"table": unary_table("identity", x.params, params).values, "dtype": params.dtype}
    return fuser.emit(Node("Lookup", [], [], name=node.name), [x.name], Tail(node.outputs[0], []), attributes)


def conv(fuser: Fuser, node: Node) -> bool:
    """Conv over one to three dimensions, with weights quantized per tensor or per output channel."""
    weight = fuser.weight(node.inputs[1])
    if weight is None or weight.ndim not in (3, 4, 5) or weight.axis not in (None, 0):
        return False
    return fuse_product(fuser, node, weight, node.inputs[2] if len(node.inputs) > 2 else "", weight.shape[0])


def conv_transpose(fuser: Fuser, node: Node) -> bool:
    """ConvTranspose over one to three dimensions, with weights quantized per tensor or per output channel."""
    weight, group = fuser.weight(node.inputs[1]), node.attributes.get("group", 1)
    if weight is None or weight.ndim not in (3, 4, 5) or weight.axis not in (None, 1):
        return False
    filters = as_filters(weight, group)
    return fuse_product(fuser, node, filters, node.inputs[2] if len(node.inputs) > 2 else "", filters.shape[0])


def matmul(fuser: Fuser, node: Node) -> bool:
    """MatMul by a constant matrix, quantized per tensor or per column; a constant added to it is its bias."""
    weight = fuser.weight(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.axis not in (None, 1):
        return False
    add = fuser.only_reader(node.outputs[0])
    if add is not None and add.op_type == "Add":
        bias = next((name for name in add.inputs if name != node.outputs[0]), "")
        vector = fuser.constant(bias)
        if vector is not None and vector.ndim <= 1:
            return fuse_product(fuser, node, weight, bias, weight.shape[1], add)
    return fuse_product(fuser, node, weight, "", weight.shape[1])


def gemm(fuser: Fuser, node: Node) -> bool:
    """Gemm by a constant matrix with a bias per column; alpha and beta must be 1."""
    weight, attributes = fuser.weight(node.inputs[1]), node.attributes
    if weight is None or weight.ndim != 2 or attributes.get("transA", 0):
        return False
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
        return False
    weight = weight.T if attributes.get("transB", 0) else weight
    if weight.axis not in (None, 1):
        return False
    return fuse_product(fuser, node, weight, node.inputs[2] if len(node.inputs) > 2 else "", weight.shape[1])


def fuse_product(
    fuser: Fuser, node: Node, weight: QTensor, bias_name: str, columns: int, add: Node | None = None
) -> bool:
    """Conv, ConvTranspose, MatMul or Gemm of an int8 activation and a constant `weight` with `columns` output channels.

    With a QuantizeLinear behind it the bias joins the int32 accumulator; otherwise the output is float32 and
    a float bias is added to it. add: the node that adds the bias, when it is not the operator itself.
    """
    x = fuser.activation(node.inputs[0])
    bias = None if x is None or weight.dtype == np.int32 else fuser.bias(bias_name, x.params, weight)
    if x is None or bias is None or bias.size not in (1, columns):
        return False
    tail = fuser.tail((add or node).outputs[0])
    if tail.out is not None:
        merged = accumulator_bias(bias, x.params.scale * weight.scale)
        if merged is None:
            tail = replace(tail, output=tail.nodes[-1].inputs[0], nodes=tail.nodes[:-1], out=None)
        else:
            bias = merged
    tail = replace(tail, nodes=[add, *tail.nodes] if add else tail.nodes)
    attributes = product_attributes(x.params, weight, bias, tail.out, tail.low, tail.high)
    return fuser.emit(node, [x.name], tail, attributes)


def binary(fuser: Fuser, node: Node) -> bool:
    """Add, Sub, Mul or Div of two int8 tensors into a third; with a constant number it is a table."""
    for variable, other in (node.inputs, node.inputs[::-1]):
        number = fuser.constant(other)
        if number is not None and number.size == 1 and number.ndim <= 1:
            return fuse_table(fuser, Region(variable, node.outputs[0], (node,)), {other: number})
    a, b = (fuser.activation(name) for name in node.inputs)
    tail = fuser.tail(node.outputs[0])
    if a is None or b is None or tail.out is None:
        return False
    return fuser.emit(node, [a.name, b.name], tail, {"a": a.params, "b": b.params, "out": tail.out})


def concat(fuser: Fuser, node: Node) -> bool:
    """Concat of int8 tensors: each is brought to the output's parameters by a table, unless it has them."""
    parts = [fuser.activation(name) for name in node.inputs]
    inputs = [part for part in parts if part is not None]
    if len(inputs) < len(parts):
        return False
    names, tail = [part.name for part in inputs], fuser.tail(node.outputs[0])
    if tail.out is None:
        same = all(part.params == inputs[0].params for part in inputs)
        return same and fuser.move(node, names, inputs[0].params)
    out = tail.out
    tables = [None if x.params == out else unary_table("identity", x.params, out).values for x in inputs]
    return fuser.emit(node, names, tail, {"tables": tables, "dtype": out.dtype})


def between(fuser: Fuser, node: Node) -> bool:
    """An operator with one int8 input and one int8 output: AveragePool, GlobalAveragePool, Softmax."""
    x, tail = fuser.activation(node.inputs[0]), fuser.tail(node.outputs[0])
    if x is None or tail.out is None:
        return False
    return fuser.emit(node, [x.name], tail, {"x": x.params, "out": tail.out})


def max_pool(fuser: Fuser, node: Node) -> bool:
    """MaxPool, GlobalMaxPool: the maximum of integers is that of the reals, so it moves integers."""
    x = fuser.activation(node.inputs[0])
    if x is None or len(node.outputs) > 1:
        return False
    return fuser.move(node, [x.name], x.params, DOMAIN)


def move_data(fuser: Fuser, node: Node) -> bool:
    """Data movement of an int8 tensor with one scale."""
    x = fuser.activation(node.inputs[0])
    return x is not None and fuser.move(node, [x.name, *node.inputs[1:]], x.params)


def transpose(fuser: Fuser, node: Node) -> bool:
    """Data movement; a constant weight is transposed at once, along with its quantization axis."""
    weight = fuser.weight(node.inputs[0])
    if weight is None:
        return move_data(fuser, node)
    moved = weight.transpose(*node.attributes.get("perm", ()))
    name = fuser.fresh(node.outputs[0])
    fuser.constants[name] = moved.data
    fuser.dequantized[node.outputs[0]] = Quantized(name, moved.params)
    return False


def resize(fuser: Fuser, node: Node) -> bool:
    """Resize to nearest neighbours moves data."""
    return node.attributes.get("mode", "nearest") == "nearest" and move_data(fuser, node)


def pad(fuser: Fuser, node: Node) -> bool:
    """Data movement, when the padding is a real value that the integers hold exactly (0 always is)."""
    x, inputs = fuser.activation(node.inputs[0]), [*node.inputs, "", ""]
    value = fuser.constant(inputs[2]) if inputs[2] else np.zeros((), np.float32)
    if x is None or value is None or np.isnan(value).any():
        return False
    integer = quantize_array(value, x.params)
    if dequantize_array(integer, x.params) != value:
        return False
    name = fuser.fresh(f"{node.outputs[0]}_padding")
    fuser.constants[name] = integer.reshape(())
    return fuser.move(node, [x.name, inputs[1], name, *node.inputs[3:]], x.params)


Pattern = Callable[[Fuser, Node], bool]

# A pattern appends the int8 form of a node and returns True, or changes nothing and returns False.
ONNX: dict[str, Pattern] = {
    **dict.fromkeys(DATA_MOVEMENT, move_data),
    "DequantizeLinear": dequantize_linear,
    "QuantizeLinear": quantize_linear,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": gemm,
    "Concat": concat,
    "Transpose": transpose,
    "Resize": resize,
    "Pad": pad,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div"), binary),
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Softmax"), between),
    **dict.fromkeys(("MaxPool", "GlobalMaxPool"), max_pool),
}
PATTERNS: dict[str, dict[str, Pattern]] = {"": ONNX, "com.microsoft": CONTRIB}
