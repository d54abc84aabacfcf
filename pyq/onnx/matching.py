"""What int8 patterns ask about a QDQ graph: what is dequantized, what follows, which weights are constant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from pyq.qparams import DTYPES, QParams, quantize_array
from pyq.quantization.graph import Graph, Node
from pyq.tensor import QTensor

# An int32 bias has to leave room for the products: beyond this it is not merged into the accumulator.
BIAS_LIMIT = 2**30


@dataclass(frozen=True, eq=False)
class Quantized:
    """A float value of the graph that is the dequantized form of the integers called `name`."""

    name: str
    params: QParams


@dataclass(frozen=True, eq=False)
class Tail:
    """What an int8 operator swallows behind itself: `nodes`, after which it makes the value `output`.

    out: parameters of the QuantizeLinear, None for a float32 output; a Relu or Clip on the way has narrowed
    its qmin and qmax. low, high: the same bounds as real values.
    """

    output: str
    nodes: list[Node]
    out: QParams | None = None
    low: float = -np.inf
    high: float = np.inf


class Matcher:
    """Knowledge about one graph. It grows while a walk lets it `see` the DequantizeLinear nodes.

    dequantized: the values seen so far that are dequantized integers. constants: the graph's, and those that
    the walk adds.
    """

    def __init__(self, graph: Graph) -> None:
        self.dequantized: dict[str, Quantized] = {}
        self.constants = dict(graph.constants)
        self._consumers = graph.consumers()
        self._visible = set(graph.output_names).union(*(node.captures for node in graph.nodes))
        for node in graph.nodes:
            if node.op_type == "DequantizeLinear" and node.inputs[0] in self.constants:
                self.see(node)  # weights and biases, wherever their nodes stand

    def see(self, node: Node) -> None:
        """Remember what the output of a DequantizeLinear stands for."""
        params = self.params(node)
        if params is not None:
            self.dequantized[node.outputs[0]] = Quantized(node.inputs[0], params)

    def only_reader(self, value: str) -> Node | None:
        """The one node that reads `value`; None when there are others, or when it is an output."""
        readers = self._consumers[value]
        return readers[0] if len(readers) == 1 and value not in self._visible else None

    def constant(self, name: str) -> NDArray[Any] | None:
        """The float array called `name`, also when it is stored as integers behind a DequantizeLinear."""
        if name in self.constants:
            return self.constants[name]
        tensor = self.weight(name)
        return None if tensor is None else tensor.dequantize()

    def weight(self, name: str) -> QTensor | None:
        """The constant integers, with their parameters, that the value `name` is dequantized from."""
        found = self.dequantized.get(name)
        if found is None or found.name not in self.constants:
            return None
        params = found.params
        return QTensor(self.constants[found.name], params.scale, params.zero_point, params.axis)

    def activation(self, name: str) -> Quantized | None:
        """The uint8 or int8 tensor with one scale that the value `name` is dequantized from."""
        found = self.dequantized.get(name)
        return found if found and found.params.axis is None and found.params.dtype != np.int32 else None

    def params(self, node: Node) -> QParams | None:
        """The constant parameters of a QuantizeLinear or DequantizeLinear; see `linear_params`."""
        return linear_params(node, self.constants.get(node.inputs[1]), self._zero_point(node))

    def _zero_point(self, node: Node) -> NDArray[Any] | None:
        """The zero point of a QuantizeLinear or DequantizeLinear, 0 when absent; it also says the type."""
        if len(node.inputs) > 2 and node.inputs[2]:
            return self.constants.get(node.inputs[2])
        if node.op_type == "DequantizeLinear":
            stored = self.constants.get(node.inputs[0])
            return None if stored is None else np.zeros((), stored.dtype)
        return output_zero_point(node)

    def tail(self, value: str) -> Tail:
        """The Relu and Clip nodes and the QuantizeLinear behind `value`, up to where somebody else reads."""
        tail = Tail(value, [])
        while (reader := self.only_reader(tail.output)) is not None:
            if reader.op_type == "QuantizeLinear":
                return self._quantized_tail(tail, reader)
            bounds = self._bounds(reader, tail.output)
            if bounds is None:
                break
            low, high = (min(max(bound, bounds[0]), bounds[1]) for bound in (tail.low, tail.high))
            tail = Tail(reader.outputs[0], [*tail.nodes, reader], None, low, high)
        return tail

    def _quantized_tail(self, tail: Tail, node: Node) -> Tail:
        """`tail` with the QuantizeLinear `node` behind it, or as it is when that has no int8 parameters."""
        params = self.params(node)
        if params is None or params.axis is not None or params.dtype == np.int32:
            return tail
        low, high = quantize_array(np.array([tail.low, tail.high], np.float32), params)
        if low >= high:
            return tail
        out = QParams(params.scale, params.zero_point, params.dtype, qmin=int(low), qmax=int(high))
        return replace(tail, output=node.outputs[0], nodes=[*tail.nodes, node], out=out)

    def _bounds(self, node: Node, value: str) -> tuple[float, float] | None:
        """The bounds that a Relu or a Clip by constants puts on `value`; None for another node."""
        if node.op_type == "Relu":
            return 0.0, np.inf
        if node.op_type != "Clip" or node.inputs[0] != value:
            return None
        bounds = [-np.inf, np.inf]
        for index, name in enumerate(node.inputs[1:3]):
            if name:
                bound = self.constant(name)
                if bound is None or bound.size != 1 or np.isnan(bound).any():
                    return None
                bounds[index] = float(bound.reshape(()))
        return min(bounds), bounds[1]  # Clip with min > max gives max everywhere

    def bias(self, name: str, x: QParams, weight: QTensor) -> NDArray[Any] | None:
        """The constant bias `name`: int32 in units of `x.scale * weight.scale` if stored so, else float32.

        A missing bias (name "") is int32 zeros in the shape of the weight's scale. None when not constant.
        """
        if not name:
            return np.zeros(weight.scale.shape, np.int32)
        stored = self.weight(name)
        if stored is None or stored.dtype != np.int32 or stored.zero_point.any():
            return self.constant(name)
        in_units = np.all(stored.scale == x.scale * weight.scale)
        return stored.data if in_units else stored.dequantize()


def output_zero_point(node: Node) -> NDArray[Any] | None:
    """Zero in the type that a QuantizeLinear without a zero point makes; None for another than uint8 and int8."""
    kind = node.attributes.get("output_dtype", TensorProto.UNDEFINED)
    dtype = {TensorProto.UNDEFINED: np.uint8, TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}.get(kind)
    return None if dtype is None else np.zeros((), dtype)


def linear_params(node: Node, scale: NDArray[Any] | None, zero_point: NDArray[Any] | None) -> QParams | None:
    """The parameters of a QuantizeLinear or DequantizeLinear with these inputs.

    None when an input is missing or pyq has no kernel for it: types other than float32 and uint8, int8 or
    int32, blocks, and the scale 0 that some quantizers give to channels of zeros.
    """
    if scale is None or scale.dtype != np.float32 or node.attributes.get("block_size"):
        return None
    if zero_point is None or zero_point.dtype not in DTYPES or zero_point.shape not in ((), scale.shape):
        return None
    if scale.size == 0 or not (np.isfinite(scale) & (scale > 0)).all():
        return None
    if scale.size == 1:
        return QParams(scale.reshape(()), zero_point.reshape(()), zero_point.dtype)
    axis = node.attributes.get("axis", 1)
    return QParams(scale, zero_point, zero_point.dtype, axis) if scale.ndim == 1 else None


def accumulator_bias(bias: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.int32] | None:
    """A float bias in units of the accumulator, `rne(bias / scale)`; None when that leaves products no room.

    An int32 bias is in these units already.

    >>> accumulator_bias(np.array([1.0, -0.5], np.float32), np.array(0.25, np.float32))
    array([ 4, -2], dtype=int32)
    """
    if bias.dtype == np.int32:
        return bias
    units = np.rint(bias.astype(np.float64) / scale)
    return units.astype(np.int32) if np.all(np.abs(units) < BIAS_LIMIT) else None
