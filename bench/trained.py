"""The layers of trained models as shapes, with their own weights instead of random ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyq.onnx import Session
from pyq.quantization.graph import Node
from pyq.tensor import QTensor, quantize
from pyq.workloads import Conv, MatMul

TINY = np.float32(1e-30)  # dead channels have such weights; with a scale as small other libraries do not work


@dataclass(frozen=True)
class TrainedMatMul(MatMul):
    """A product with the weights of a layer. reals: [k, n]."""

    reals: NDArray[np.float32] = field(compare=False, repr=False, kw_only=True)

    def weights(self, rng: np.random.Generator, distribution: str) -> QTensor:
        """The layer's, whatever is asked for."""
        return _quantized(self.reals, axis=1)


@dataclass(frozen=True)
class TrainedConv(Conv):
    """A convolution with the filters of a layer. reals: of `filter_shape`."""

    reals: NDArray[np.float32] = field(compare=False, repr=False, kw_only=True)

    def weights(self, rng: np.random.Generator, distribution: str) -> QTensor:
        """The layer's, whatever is asked for."""
        return _quantized(self.reals, axis=0)


Layer = TrainedMatMul | TrainedConv


def _quantized(reals: NDArray[np.float32], axis: int) -> QTensor:
    return quantize(np.where(np.abs(reals) < TINY, np.float32(0), reals), "int8", axis=axis)


def different(layers: Iterable[Layer]) -> list[Layer]:
    """Each shape once, with the weights of the first layer that has it."""
    found: dict[str, Layer] = {}
    for layer in layers:
        found.setdefault(layer.label, layer)
    return list(found.values())


def onnx_layers(model: Path, size: tuple[int, ...]) -> list[Layer]:
    """The layers of an ONNX model for an input of `size`.

    Products and convolutions of constant weights count; of the latter those in 2-D, not dilated, that are padded by
    half the kernel.
    """
    session = Session(model)
    nodes = [node for node in session.graph.nodes if node.op_type in ("Conv", "MatMul", "Gemm")]
    nodes = [node for node in nodes if node.inputs[1] in session.graph.constants]
    feeds = {session.get_inputs()[0].name: np.zeros(size, np.float32)}
    values = session.run_values([node.inputs[0] for node in nodes], feeds)
    layers = (_layer(n, values[n.inputs[0]].shape, session.graph.constants[n.inputs[1]]) for n in nodes)
    return [layer for layer in layers if layer is not None]


def _layer(node: Node, shape: tuple[int, ...], weights: NDArray[Any]) -> Layer | None:
    if node.op_type != "Conv":
        w = weights.T if node.attributes.get("transB") else weights
        rows = int(np.prod(shape[:-1]))
        return TrainedMatMul(rows, w.shape[-1], w.shape[0], reals=w) if w.ndim == 2 else None
    if weights.ndim != 4 or set(node.attributes.get("dilations", [1])) != {1}:
        return None
    strides, group = node.attributes.get("strides", [1, 1]), node.attributes.get("group", 1)
    size, kernel = (shape[2], shape[3]), (weights.shape[2], weights.shape[3])
    layer = TrainedConv(size, shape[1], len(weights), kernel, tuple(strides), group, reals=weights)
    return layer if list(layer.placement.pads) == list(node.attributes.get("pads", [0] * 4)) else None
