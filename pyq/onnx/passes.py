"""Graph simplifications that keep what the model computes: fewer nodes, the same outputs.

Values that remain keep their names, so that float and quantized graphs of one model can be compared by name. Only
values that nothing reads any more, and that are no graph outputs, disappear.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx

from pyq.onnx.export import to_proto
from pyq.onnx.float_ops import FLOAT_OPS, FloatStep
from pyq.onnx.load import value_info
from pyq.onnx.step import Fresh
from pyq.quantization.graph import Graph, Node, ValueInfo

Array = np.ndarray

NOT_FOLDED = frozenset(
    {
        "Bernoulli",
        "DequantizeLinear",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    }
)
"""Random operators; and DequantizeLinear, because int8 weights are to stay int8."""


def optimize(graph: Graph) -> Graph:
    """All passes on a copy of the graph: drop no-ops, fold constants, fold affine operators into convolutions.

    >>> from pyq.quantization.graph import ValueInfo
    >>> nodes = [Node("Add", ["a", "b"], ["c"]), Node("Mul", ["x", "c"], ["y"])]
    >>> constants = {"a": np.float32([1]), "b": np.float32([2])}
    >>> optimized = optimize(Graph(nodes, constants, [ValueInfo("x")], [ValueInfo("y")], opset=13))
    >>> len(optimized.nodes), optimized.constants
    (1, {'c': array([3.], dtype=float32)})
    """
    graph = graph.copy()
    graph.prune()
    drop_no_ops(graph)
    fold_constants(graph)
    fold_affine(graph)
    graph.prune()
    return graph


def drop_no_ops(graph: Graph) -> None:
    """Remove, in place, Identity and inference-mode Dropout whose outputs are no graph outputs."""
    outputs = set(graph.output_names)
    captured = {name for node in graph.nodes for name in node.captures}
    source: dict[str, str] = {}
    kept: list[Node] = []
    for node in graph.sorted():
        node.inputs = [source.get(name, name) for name in node.inputs]
        wanted = [name for name in node.outputs if name]
        if _is_no_op(node, graph) and len(wanted) == 1 and wanted[0] not in outputs | captured:
            source[wanted[0]] = node.inputs[0]
        else:
            kept.append(node)
    graph.nodes = kept


def _is_no_op(node: Node, graph: Graph) -> bool:
    if node.domain:
        return False
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else ""
        return not training or (training in graph.constants and not graph.constants[training].any())
    return node.op_type == "Identity"


def fold_constants(graph: Graph) -> None:
    """Replace, in place, nodes whose inputs are all constant, and Shape and Size of static shapes, by constants."""
    shapes = _static_shapes(graph)
    kept: list[Node] = []
    for node in graph.sorted():
        if not node.domain and node.op_type in ("Shape", "Size") and node.inputs[0] in shapes:
            stand_in = np.broadcast_to(np.zeros(()), shapes[node.inputs[0]])
            graph.constants[node.outputs[0]] = FLOAT_OPS[node.op_type](stand_in, **node.attributes)
        elif _is_foldable(node, graph):
            results = FloatStep(node, graph).run([], Fresh())
            graph.constants.update(zip(node.outputs, results, strict=True))
        else:
            kept.append(node)
    graph.nodes = kept


def _is_foldable(node: Node, graph: Graph) -> bool:
    if node.domain or node.captures or node.op_type in NOT_FOLDED or not all(node.outputs):
        return False
    return bool(node.reads()) and all(name in graph.constants for name in node.reads())


def _static_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shapes that follow from the graph's inputs and are fixed in every dimension."""
    asked = any(node.op_type in ("Shape", "Size") for node in graph.nodes)
    if not asked or any(value.dtype is None for value in [*graph.inputs, *graph.outputs]):
        return {}
    # Weights matter by their shapes alone: as inputs they cost nothing. Small constants may be shapes themselves.
    large = {name: array for name, array in graph.constants.items() if array.size > 64}
    weights = [ValueInfo(name, array.dtype, array.shape) for name, array in large.items()]
    small = {name: array for name, array in graph.constants.items() if name not in large}
    model = to_proto(replace(graph, constants=small, inputs=[*graph.inputs, *weights]))
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    values = map(value_info, [*inferred.graph.input, *inferred.graph.value_info])
    known = {value.name: value.shape for value in values if value.shape is not None}
    return {name: shape for name, shape in known.items() if all(isinstance(n, int) for n in shape)}  # type: ignore[misc]


class Affine(NamedTuple):
    """`y = scale * x + shift`, float64, each a number or one per channel (axis 1)."""

    scale: Array
    shift: Array


def fold_affine(graph: Graph) -> None:
    """Fold, in place, BatchNormalization, Mul, Add, Sub and Div by constants into the convolution before them.

    A Conv or ConvTranspose takes a chain of them into its weight and bias, as one float64 product, rounded once to the
    type of the weight. An operator is folded only when it alone reads the value before it, and when that value is no
    graph output.
    """
    outputs, consumers = set(graph.output_names), graph.consumers()
    folded: set[Node] = set()
    for node in graph.nodes:
        if node.op_type not in ("Conv", "ConvTranspose") or node.domain:
            continue
        if not all(name in graph.constants for name in node.reads()[1:]):
            continue
        weight = graph.constants[node.inputs[1]]
        total = Affine(np.ones(()), np.zeros(()))
        value = node.outputs[0]
        while value not in outputs and len(consumers[value]) == 1:
            [reader] = consumers[value]
            affine = _affine(reader, value, _output_channels(node, weight), weight.ndim, graph)
            if affine is None:
                break
            total = Affine(affine.scale * total.scale, affine.scale * total.shift + affine.shift)
            folded.add(reader)
            value = reader.outputs[0]
        if value != node.outputs[0]:
            node.outputs = [value]
            _absorb(node, total, graph, consumers)
    graph.nodes = [node for node in graph.nodes if node not in folded]


def _absorb(conv: Node, affine: Affine, graph: Graph, consumers: dict[str, list[Node]]) -> None:
    """Give a Conv or ConvTranspose the weight and bias that make the affine operators behind it superfluous."""
    old = [graph.constants[name] for name in conv.reads()[1:]]
    weight, channels = old[0], _output_channels(conv, old[0])
    scale = np.broadcast_to(affine.scale, (channels,))
    bias = old[1].astype(np.float64) if len(old) > 1 else np.zeros(channels)
    new = [_scaled(conv, weight, scale), bias * scale + affine.shift]
    names = [*conv.reads()[1:], ""][:2]
    for i, kind in enumerate(("weight", "bias")):
        if not names[i] or names[i] in graph.output_names or len(consumers[names[i]]) > 1:
            names[i] = f"{conv.outputs[0]}_{kind}"
            while names[i] in consumers:
                names[i] += "_"
        graph.constants[names[i]] = new[i].astype(weight.dtype)
    conv.inputs = [conv.inputs[0], *names]


def _output_channels(conv: Node, weight: Array) -> int:
    """How many there are: filters [M, C / group, ...] of a Conv, [C, M / group, ...] of a ConvTranspose."""
    return len(weight) if conv.op_type == "Conv" else weight.shape[1] * conv.attributes.get("group", 1)


def _scaled(conv: Node, weight: Array, scale: Array) -> Array:
    """The weight that multiplies output channel m by `scale[m]`."""
    spatial = [1] * (weight.ndim - 2)
    if conv.op_type == "Conv":
        return weight * scale.reshape(-1, 1, *spatial)
    groups = scale.reshape(-1, weight.shape[1])
    return weight * np.repeat(groups, len(weight) // len(groups), axis=0).reshape(*weight.shape[:2], *spatial)


def _affine(node: Node, value: str, channels: int, rank: int, graph: Graph) -> Affine | None:
    """What `node` does to `value` [N, channels, ...] of `rank` dimensions, if that is affine by channel."""
    constants = graph.constants
    if node.domain:
        return None
    if node.op_type == "BatchNormalization":
        if node.attributes.get("training_mode") or not all(name in constants for name in node.inputs[1:]):
            return None
        scale, bias, mean, variance = (constants[name].astype(np.float64) for name in node.inputs[1:])
        factor = scale / np.sqrt(variance + node.attributes.get("epsilon", 1e-5))
        return Affine(factor, bias - mean * factor)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or node.inputs.count(value) != 1:
        return None
    other = node.inputs[1 - node.inputs.index(value)]
    if other not in constants:
        return None
    array = constants[other].astype(np.float64)
    if array.ndim > rank or array.size not in (1, channels):
        return None
    if array.size > 1 and (array.ndim < rank - 1 or array.shape[-(rank - 1)] != channels):
        return None
    operand, one, zero = array.reshape(-1) if array.size > 1 else array.reshape(()), np.ones(()), np.zeros(())
    if node.op_type == "Add":
        return Affine(one, operand)
    if node.op_type == "Mul":
        return Affine(operand, zero)
    first = node.inputs[0] == value
    if node.op_type == "Sub":
        return Affine(one, -operand) if first else Affine(-one, operand)
    return Affine(1 / operand, zero) if first else None
