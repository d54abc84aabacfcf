"""Write static quantization into a graph: quantizers around activations, integer weights and biases (QDQ).

An activation `X` passes through QuantizeLinear (`X_quantized`) and DequantizeLinear (`X_dequantized`); a
weight `W` becomes the int8 constant `W_quantized` and a DequantizeLinear. The result is standard ONNX, opset
13 or later, that any runtime can execute in float; one that knows the pattern runs each operator between its
quantizers in int8.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.qparams import QParams, choose_qparams, quantize_array
from pyq.quantization.graph import Graph, Node
from pyq.quantization.selection import Unit, Weights, quantized_tensors

MIN_OPSET = 13
"""The first ONNX opset with per-channel QuantizeLinear and DequantizeLinear."""

BIAS_LIMIT = 2**30
"""Largest magnitude of a quantized bias: the other half of int32 is left to the sum of products."""

SMALLEST_PRODUCT = 2.0**-100
"""Least `input scale * weight scale`, for channels of zero weights; far from the underflow of float32."""


@dataclass(frozen=True)
class Recipe:
    """How integers are chosen.

    activation_dtype: "uint8" or "int8", asymmetric over the calibrated range. per_channel: int8 weights have
    a scale per output channel, else one in all; always symmetric, zero point 0. reduce_range: weights within
    [-64, 64] (7 bits) instead of [-127, 127]: faster on CPUs that add products in 16 bits, at half the
    resolution.
    """

    activation_dtype: str = "uint8"
    per_channel: bool = True
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.activation_dtype not in ("uint8", "int8"):
            raise ValueError(f"activation_dtype: got {self.activation_dtype!r}, allowed are 'uint8', 'int8'")

    def __str__(self) -> str:
        bits, scales = 7 if self.reduce_range else 8, "channel" if self.per_channel else "tensor"
        return f"activations {self.activation_dtype}, weights int8 of {bits} bits per {scales}"


def calibrated_tensors(units: list[Unit]) -> list[str]:
    """The activations whose range has to be observed: all quantized ones that keep no other's parameters."""
    kept = {unit.output for unit in units if unit.moves}
    return [name for name in quantized_tensors(units) if name not in kept]


def activation_params(
    units: list[Unit], ranges: Mapping[str, tuple[float, float]], recipe: Recipe
) -> dict[str, QParams]:
    """Parameters of every quantized activation; `ranges` has those that `calibrated_tensors` names."""
    params = {
        name: choose_qparams(*ranges[name], recipe.activation_dtype, symmetric=False)
        for name in calibrated_tensors(units)
    }
    for unit in units:
        if unit.moves:
            params[unit.output] = params[unit.inputs[0]]
    return params


def insert_qdq(graph: Graph, units: list[Unit], params: Mapping[str, QParams], recipe: Recipe) -> Graph:
    """A copy of `graph` with the units quantized.

    params: of every activation that `quantized_tensors(units)` names. Where a unit makes the activation,
    everyone reads its dequantized form; where a float operator makes it, or it is a graph input, only units
    do. Graph inputs and outputs keep their names and stay float. ValueError when the opset is below 13 or a
    weight is not finite.
    """
    if graph.opset < MIN_OPSET:
        raise ValueError(f"graph: opset {graph.opset} has no per-channel quantization, {MIN_OPSET} or later is needed")
    writer = _Writer(graph.copy(), params, recipe)
    copies = dict(zip(graph.nodes, writer.graph.nodes, strict=True))
    units = [replace(unit, nodes=tuple(copies[node] for node in unit.nodes)) for unit in units]
    for unit in units:
        if unit.weights is not None:
            writer.quantize_weights(unit, unit.weights)
    writer.quantize_activations(units)
    writer.graph.prune()
    return writer.graph


class _Writer:
    """Rewrites one graph in place. The names it makes are unique; its nodes are appended in any order."""

    def __init__(self, graph: Graph, params: Mapping[str, QParams], recipe: Recipe) -> None:
        self.graph = graph
        self.params = params
        self.recipe = recipe
        self._taken = {value.name for value in graph.inputs} | set(graph.constants)
        self._taken.update(name for node in graph.nodes for name in node.outputs)
        self._weights: dict[tuple[str, int, bytes], str] = {}

    def quantize_weights(self, unit: Unit, weights: Weights) -> None:
        """Let the unit read int8 weights, and its bias in int32 with scale `input scale * weight scale`."""
        weight = self.graph.constants[weights.name]
        bias = None if weights.bias is None else self.graph.constants[weights.bias]
        for name, array in ((weights.name, weight), (weights.bias, bias)):
            if array is not None and not np.isfinite(array).all():
                raise ValueError(f"constant {name!r}: expected finite numbers, got NaN or infinity")
        input_scale = self.params[unit.inputs[0]].scale
        params = weight_params(weight, weights.axis, bias, input_scale, self.recipe)
        self._replace(unit, weights.name, self._dequantized_weight(weights, weight, params))
        if weights.bias is not None and bias is not None:
            scale = input_scale * params.scale
            if params.axis is not None:  # the groups of a ConvTranspose share their scales
                scale = np.resize(scale, bias.shape)
            self._replace(unit, weights.bias, self._dequantized_bias(weights.bias, bias, scale))

    def quantize_activations(self, units: list[Unit]) -> None:
        """Put QuantizeLinear and DequantizeLinear behind every activation that a unit reads."""
        members = {(node, name) for unit in units for node in unit.nodes for name in unit.inputs}
        made = {unit.output for unit in units}
        readers = self.graph.consumers()
        for name in quantized_tensors(units):
            quantized, dequantized = self._fresh(f"{name}_quantized"), self._fresh(f"{name}_dequantized")
            for node in readers[name]:
                if name in made or (node, name) in members:
                    node.inputs = [dequantized if value == name else value for value in node.inputs]
            constants = self._params_constants(name, self.params[name])
            self._append("QuantizeLinear", [name, *constants], quantized)
            self._append("DequantizeLinear", [quantized, *constants], dequantized)

    def _dequantized_weight(self, weights: Weights, array: NDArray[np.float32], params: QParams) -> str:
        """The name of the dequantized weight; operators that share weight and scale share it."""
        key = (weights.name, weights.axis, params.scale.tobytes())
        if key not in self._weights:
            data = self._constant(f"{weights.name}_quantized", quantize_array(array, params))
            constants = self._params_constants(weights.name, params)
            self._weights[key] = self._fresh(f"{weights.name}_dequantized")
            self._append("DequantizeLinear", [data, *constants], self._weights[key], params.axis)
        return self._weights[key]

    def _dequantized_bias(self, name: str, bias: NDArray[np.float32], scale: NDArray[np.float32]) -> str:
        """The name of the dequantized bias; ONNX wants no zero point for int32."""
        data = self._constant(f"{name}_quantized", quantize_bias(bias, scale))
        scales = self._constant(f"{name}_scale", scale)
        dequantized = self._fresh(f"{name}_dequantized")
        self._append("DequantizeLinear", [data, scales], dequantized, 0 if scale.ndim else None)
        return dequantized

    def _params_constants(self, name: str, params: QParams) -> list[str]:
        zero_point = params.zero_point.astype(params.dtype)
        return [
            self._constant(f"{name}_scale", params.scale),
            self._constant(f"{name}_zero_point", zero_point),
        ]

    def _constant(self, name: str, array: NDArray[Any]) -> str:
        name = self._fresh(name)
        self.graph.constants[name] = array
        return name

    def _append(self, op_type: str, inputs: list[str], output: str, axis: int | None = None) -> None:
        attributes = {} if axis is None else {"axis": axis}
        self.graph.nodes.append(Node(op_type, inputs, [output], attributes, name=f"{output}_{op_type}"))

    def _replace(self, unit: Unit, old: str, new: str) -> None:
        for node in unit.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]

    def _fresh(self, name: str) -> str:
        """`name`, or `name` with the first number behind it that makes it new."""
        candidates = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
        fresh = next(candidate for candidate in candidates if candidate not in self._taken)
        self._taken.add(fresh)
        return fresh


def weight_params(
    weight: NDArray[np.float32],
    axis: int,
    bias: NDArray[np.float32] | None,
    input_scale: NDArray[np.float32],
    recipe: Recipe,
) -> QParams:
    """Symmetric int8 parameters for a weight with output channels, or those of each group, along `axis`.

    The scale of a channel is its largest magnitude / 127 (64 for reduced range), but so large that its bias,
    in units of `input_scale * scale`, stays within 2**30: channels of tiny weights must not wrap around
    int32.
    """
    qmax = 64 if recipe.reduce_range else 127
    others = tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, initial=0).astype(np.float64)
    offset = np.zeros(1) if bias is None else np.abs(bias, dtype=np.float64).reshape(-1, weight.shape[axis]).max(axis=0)
    scale = np.maximum(largest / qmax, np.maximum(offset / BIAS_LIMIT, SMALLEST_PRODUCT) / input_scale)
    if recipe.per_channel:
        return QParams(scale.astype(np.float32), 0, "int8", axis, -qmax, qmax)
    return QParams(scale.max().astype(np.float32), 0, "int8", None, -qmax, qmax)


def quantize_bias(bias: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """int32 bias `rne(bias / scale)`, in float64 because float32 has not the digits of int32."""
    return np.rint(bias.astype(np.float64) / scale.astype(np.float64)).astype(np.int32)
