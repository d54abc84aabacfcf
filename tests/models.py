"""Small float models with random weights, in the patterns that real networks have."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class ModelBuilder:
    """Builds an ONNX model call by call; every method takes and returns names of values.

    The output of the n-th operator is called by its type and n: `Conv0`, `Relu1` ...; so is its node.
    """

    def __init__(self, shape: tuple[int | str, ...], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op_type}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, *shape: int, scale: float = 1.0) -> str:
        fan_in = np.prod(shape[1:]) if len(shape) > 2 else shape[0]
        return self.constant(scale * self.rng.normal(size=shape) / np.sqrt(fan_in))

    def conv(self, x: str, channels: int, filters: int, kernel: int = 3, group: int = 1, **attributes: Any) -> str:
        weight = self.weight(filters, channels // group, kernel, kernel)
        bias = self.constant(self.rng.normal(size=filters) / 4)
        attributes = {"pads": [kernel // 2] * 4, **attributes}
        return self.op("Conv", x, weight, bias, group=group, kernel_shape=[kernel] * 2, **attributes)

    def linear(self, x: str, features: int, outputs: int) -> str:
        product = self.op("MatMul", x, self.weight(features, outputs))
        return self.op("Add", product, self.constant(self.rng.normal(size=outputs)))

    def hardswish(self, x: str) -> str:
        gate = self.op("Clip", self.op("Add", x, self.constant(3)), self.constant(0), self.constant(6))
        return self.op("Div", self.op("Mul", x, gate), self.constant(6))

    def swish(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def squeeze_excite(self, x: str, channels: int) -> str:
        pooled = self.op("GlobalAveragePool", x)
        squeezed = self.op("Relu", self.conv(pooled, channels, channels // 4, 1))
        gate = self.op("HardSigmoid", self.conv(squeezed, channels // 4, channels, 1))
        return self.op("Mul", x, gate)

    def model(self, *outputs: str, opset: int = 17) -> onnx.ModelProto:
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, values, self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


def conv_hardswish_chain() -> onnx.ModelProto:
    """Conv, hard swish, depthwise Conv, hard swish with a learned scale and offset, pointwise Conv."""
    b = ModelBuilder((1, 3, 12, 16))
    y = b.hardswish(b.conv("x", 3, 16, strides=[2, 2]))
    y = b.hardswish(b.conv(y, 16, 16, group=16))
    y = b.op("Add", b.op("Mul", y, b.constant([1.5])), b.constant([0.25]))
    return b.model(b.conv(y, 16, 8, 1))


def squeeze_excite() -> onnx.ModelProto:
    """Conv, squeeze and excite with its broadcast product, Conv."""
    b = ModelBuilder((1, 3, 8, 8))
    y = b.squeeze_excite(b.hardswish(b.conv("x", 3, 16)), 16)
    return b.model(b.conv(y, 16, 8, 1))


def residual() -> onnx.ModelProto:
    """Conv and Relu, two branches, their sum with Relu, max pool, Conv."""
    b = ModelBuilder((2, 3, 9, 9))
    y = b.op("Relu", b.conv("x", 3, 8))
    y = b.op("Relu", b.op("Add", y, b.conv(y, 8, 8)))
    y = b.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return b.model(b.conv(y, 8, 4))


def transformer_block() -> onnx.ModelProto:
    """Transpose, MatMul with bias, swish, MatMul with bias, residual sum with a float input, MatMul."""
    b = ModelBuilder(("N", 24, 5))
    tokens = b.op("Transpose", "x", perm=[0, 2, 1])
    y = b.linear(b.swish(b.linear(tokens, 24, 48)), 48, 24)
    return b.model(b.op("Softmax", b.linear(b.op("Add", tokens, y), 24, 11), axis=-1))


def classifier() -> onnx.ModelProto:
    """Conv, two pooled branches joined by Concat, average pools, Flatten, Gemm."""
    b = ModelBuilder((2, 3, 10, 10))
    y = b.op("Relu", b.conv("x", 3, 8))
    left = b.op("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])
    right = b.op("Clip", b.conv(y, 8, 8, strides=[2, 2]), b.constant(0), b.constant(6))
    y = b.op("GlobalAveragePool", b.swish(b.conv(b.op("Concat", left, right, axis=1), 16, 12)))
    bias = b.constant(b.rng.normal(size=7))
    return b.model(b.op("Gemm", b.op("Flatten", y), b.weight(12, 7), bias))


def one_dimensional() -> onnx.ModelProto:
    """Conv over one dimension without a bias, Leaky Relu, strided and dilated Conv, Gemm by rows to one number."""
    b = ModelBuilder((2, 4, 24))
    y = b.op("LeakyRelu", b.op("Conv", "x", b.weight(8, 4, 3)), alpha=0.1)
    y = b.op("Conv", y, b.weight(8, 4, 3), group=2, strides=[2], dilations=[2], pads=[2, 2])
    y = b.op("Reshape", b.op("Relu", y), b.constant([2, -1], np.int64))
    return b.model(b.op("Gemm", y, b.constant(b.rng.normal(size=(1, 88)) / 8), b.constant([0.5]), transB=1))


def volume() -> onnx.ModelProto:
    """Strided Conv over three dimensions with Relu, depthwise Conv, pointwise Conv without a bias."""
    b = ModelBuilder((1, 2, 6, 8, 7))
    y = b.op("Relu", b.op("Conv", "x", b.weight(8, 2, 3, 3, 3), b.constant(b.rng.normal(size=8)), strides=[1, 2, 1]))
    y = b.op("Conv", y, b.weight(8, 1, 2, 3, 3), group=8, pads=[1, 1, 1, 0, 1, 1])
    return b.model(b.op("Conv", y, b.weight(5, 8, 1, 1, 1)))


def decoder() -> onnx.ModelProto:
    """ConvTranspose with BatchNormalization and Relu, one in groups with a bias and a swish, one without either."""
    b = ModelBuilder((1, 8, 5, 6))
    y = b.op("ConvTranspose", "x", b.weight(8, 12, 4, 4), strides=[2, 2], pads=[1, 1, 1, 1])
    positive = [b.constant(b.rng.uniform(0.5, 2, 12)) for _ in range(2)]
    offsets = [b.constant(b.rng.normal(size=12) / 4) for _ in range(2)]
    y = b.op("Relu", b.op("BatchNormalization", y, positive[0], *offsets, positive[1]))
    bias = b.constant(b.rng.normal(size=6) / 4)
    y = b.swish(b.op("ConvTranspose", y, b.weight(12, 3, 3, 3), bias, group=2, strides=[2, 2], output_padding=[1, 1]))
    return b.model(b.op("ConvTranspose", y, b.weight(6, 2, 2, 2), strides=[2, 2]))


MODELS = {
    make.__name__: make
    for make in (
        *(conv_hardswish_chain, squeeze_excite, residual, transformer_block, classifier, one_dimensional),
        *(volume, decoder),
    )
}


def feeds(model: onnx.ModelProto, count: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Normally distributed inputs; symbolic dimensions are 2."""
    rng = np.random.default_rng(seed)
    shape = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rng.normal(size=shape).astype(np.float32)} for _ in range(count)]
