"""Decide which operators of a float graph run in int8.

*Anchors* are the operators that int8 is for: Conv, ConvTranspose, Gemm and MatMul with constant weights. They
are always chosen. *Followers* (residual additions, pools, activations, moves of data) are chosen where they
keep a tensor in int8 on its way from one chosen operator to the next: when all they read comes from chosen
operators, and a chosen operator reads what they make. Everything else stays float, so nothing is quantized
only to be dequantized at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from pyq.quantization.graph import Graph, Node
from pyq.quantization.regions import unary_regions

ANCHORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
CONVOLUTIONS = ("Conv", "ConvTranspose")
BINARY = ("Add", "Sub", "Mul")
AVERAGES = ("AveragePool", "GlobalAveragePool")
MOVES = ("MaxPool", "Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
CLAMPS = (["Relu"], ["Clip"])
OPERATORS = (*ANCHORS, *BINARY, *AVERAGES, *MOVES, "Concat")


@dataclass(frozen=True)
class Weights:
    """The constants of an anchor: names of weight and bias, and the weight's output-channel axis."""

    name: str
    axis: int
    bias: str | None = None


@dataclass(frozen=True)
class Unit:
    """Nodes that become one int8 operation.

    nodes: in graph order: an operator, perhaps with the Add of its bias and a Relu or Clip, or a unary region.
    inputs: the tensors it reads, each to be quantized. output: the tensor it makes. weights: for anchors.
    moves: the output only rearranges or selects values of the input and keeps its parameters.
    """

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    output: str
    weights: Weights | None = None
    moves: bool = False


def select(graph: Graph, *, op_types: Collection[str] | None = None, exclude: Collection[str] = ()) -> list[Unit]:
    """The units of `graph` to be quantized, in graph order.

    op_types: the operators to consider, of `OPERATORS`; all of them by default. Element-wise activations
    between quantized operators always follow. exclude: names of nodes or of their outputs; a unit with such a
    node stays float. ValueError for an operator or a name that is unknown.
    """
    _check_names("op_types", op_types or (), OPERATORS)
    _check_names("exclude", exclude, [name for node in graph.nodes for name in (node.name, *node.outputs)])
    considered, banned = set(OPERATORS if op_types is None else op_types), set(exclude)

    fed: list[Unit] = []
    made: set[str] = set()
    for unit in _candidates(graph, considered):
        allowed = banned.isdisjoint(name for node in unit.nodes for name in (node.name, *node.outputs))
        if allowed and (unit.weights or made.issuperset(unit.inputs)):
            fed.append(unit)
            made.add(unit.output)

    chosen: list[Unit] = []
    read: set[str] = set()
    for unit in reversed(fed):
        if unit.weights or unit.output in read:
            chosen.append(unit)
            read.update(unit.inputs)
    return chosen[::-1]


def quantized_tensors(units: list[Unit]) -> list[str]:
    """The activations that need a quantizer: all that a unit reads, in order, once."""
    return list(dict.fromkeys(name for unit in units for name in unit.inputs))


def _candidates(graph: Graph, considered: Collection[str]) -> list[Unit]:
    """Every unit the graph could have; no node is in two of them."""
    regions = unary_regions(graph)
    in_region = {node for region in regions for node in region.nodes}
    clamps = {region.nodes[0] for region in regions if [node.op_type for node in region.nodes] in CLAMPS}
    readers = graph.consumers()

    def sole_reader(tensor: str) -> Node | None:
        return readers[tensor][0] if len(readers[tensor]) == 1 and tensor not in graph.output_names else None

    units = []
    for node in graph.nodes:
        if node.op_type not in considered or node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ANCHORS:
            unit = _anchor(node, graph, sole_reader)
        else:
            unit = None if node in in_region else _follower(node, graph)
        if unit is not None:
            units.append(unit if unit.moves else _with_clamp(unit, sole_reader(unit.output), clamps))

    taken = {node for unit in units for node in unit.nodes}
    units += [
        Unit(tuple(region.nodes), (region.input,), region.output)
        for region in regions
        if taken.isdisjoint(region.nodes)
    ]
    position = {node: i for i, node in enumerate(graph.nodes)}
    return sorted(units, key=lambda unit: position[unit.nodes[-1]])


def _anchor(node: Node, graph: Graph, sole_reader: Callable[[str], Node | None]) -> Unit | None:
    """The unit of an anchor with constant float32 weights, and its bias; None for others."""
    weight = graph.constants.get(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or node.inputs[0] in graph.constants:
        return None
    if not _has_kernel(node, weight):
        return None
    unit = Unit((node,), (node.inputs[0],), node.outputs[0], Weights(node.inputs[1], _output_axis(node, weight)))
    if node.op_type == "MatMul":
        return _with_bias_add(unit, weight, sole_reader(unit.output), graph)
    bias = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2] else None
    return unit if bias is None else _with_bias(unit, weight, bias, graph)


def _has_kernel(node: Node, weight: np.ndarray) -> bool:
    """Whether int8 can do it: convolutions over one to three dimensions, products by a matrix without extras."""
    if node.op_type in CONVOLUTIONS:
        return weight.ndim in (3, 4, 5)
    alpha, beta = (node.attributes.get(name, 1.0) for name in ("alpha", "beta"))
    return weight.ndim == 2 and alpha == beta == 1 and not node.attributes.get("transA", 0)


def _output_axis(node: Node, weight: np.ndarray) -> int:
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get("transB", 0)):
        return 0
    return weight.ndim - 1


def _with_bias(unit: Unit, weight: np.ndarray, bias: str, graph: Graph) -> Unit | None:
    """The unit with a constant bias of one value per output channel; None when the bias is anything else."""
    assert unit.weights is not None
    array, channels = graph.constants.get(bias), weight.shape[unit.weights.axis]
    if unit.nodes[0].op_type == "ConvTranspose":
        channels *= unit.nodes[0].attributes.get("group", 1)  # the axis has those of one group
    if array is None or array.dtype != np.float32 or array.shape != (channels,):
        return None
    return replace(unit, weights=replace(unit.weights, bias=bias))


def _with_bias_add(unit: Unit, weight: np.ndarray, add: Node | None, graph: Graph) -> Unit:
    """The MatMul unit joined with the Add of a bias that alone reads it, if there is one."""
    if add is None or add.op_type != "Add":
        return unit
    other = add.inputs[1] if add.inputs[0] == unit.output else add.inputs[0]
    biased = _with_bias(unit, weight, other, graph)
    return unit if biased is None else replace(biased, nodes=(*unit.nodes, add), output=add.outputs[0])


def _follower(node: Node, graph: Graph) -> Unit | None:
    """The unit of an operator that works on int8 wherever its inputs happen to be int8; None for others."""
    moves = node.op_type in MOVES
    inputs = node.inputs[:1] if moves else node.inputs
    if len(node.outputs) != 1 or any(name in graph.constants or not name for name in inputs):
        return None
    return Unit((node,), tuple(dict.fromkeys(inputs)), node.outputs[0], moves=moves)


def _with_clamp(unit: Unit, reader: Node | None, clamps: Collection[Node]) -> Unit:
    """The unit joined with the Relu or Clip that alone reads it: int8 operators clamp for free."""
    if reader not in clamps or reader is None:
        return unit
    return replace(unit, nodes=(*unit.nodes, reader), output=reader.outputs[0])


def _check_names(argument: str, given: Collection[str], known: Collection[str]) -> None:
    if isinstance(given, str):
        raise TypeError(f"{argument}: expected a collection of names, got the string {given!r}")
    unknown = sorted(set(given).difference(known))
    if unknown:
        choices = ", ".join(sorted(known)) if len(known) < 20 else "names of nodes and of their outputs in the graph"
        raise ValueError(f"{argument}: got {', '.join(map(repr, unknown))}, allowed are {choices}")
